//! The daemon's life: lock, recover, listen, serve, reload, drain.
//!
//! ```text
//! lock the state and run directories -> recover pods -> socket -> READY
//!     SIGHUP   read the configuration again; what can be, takes effect
//!     SIGTERM  STOPPING; no new connections; calls under way end; streams end; pods go on
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::debug_span;

use crate::config::Config;
use crate::daemon::{Daemon, blocking};
use crate::error::Error;
use crate::service::Service;
use crate::v1::image_service_server::ImageServiceServer;
use crate::v1::runtime_service_server::RuntimeServiceServer;
use crate::{cgroups, network, recover, streaming};

/// The file in the run directory that says which daemon this is; `podwright` waits for reloads by it.
const IDENTITY: &str = "podwrightd.json";

/// The longest /etc/group that is searched, in bytes.
const MAX_GROUP_BYTES: u64 = 1024 * 1024;

/// Applies a log level, or says what is wrong with it.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the daemon's program brings.
pub struct Options {
    /// Where the configuration was read from, for SIGHUP.
    pub config_file: PathBuf,
    /// Whether that file has to exist.
    pub config_required: bool,
    /// A listening socket from the service manager, instead of our own.
    pub inherited: Option<std::os::unix::net::UnixListener>,
    /// Applies a new log level.
    pub set_log_level: SetLogLevel,
    /// Tells the service manager.
    pub notify: Box<dyn Fn(Stage) + Send + Sync>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("config_file", &self.config_file).finish_non_exhaustive()
    }
}

/// What a service manager is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Calls are answered.
    Ready,
    /// The configuration is being read again; [`Ready`](Self::Ready) follows.
    Reloading,
    /// No new calls.
    Stopping,
}

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn serve(config: Config, options: Options) -> Result<(), Error> {
    let _locks = lock(&config)?;
    let daemon = {
        let config = config.clone();
        Arc::new(blocking(debug_span!("start"), move || Daemon::new(config)).await?)
    };
    cgroups::ensure_monitors(daemon.cgroup_place());
    let served = run(&config, options, &daemon).await;
    // Also where it could not start.
    cgroups::release_monitors(daemon.cgroup_place());
    served
}

async fn run(config: &Config, mut options: Options, daemon: &Arc<Daemon>) -> Result<(), Error> {
    let loading = load_apparmor(daemon.clone());
    daemon.networks.restore(&daemon.state);
    recover::recover(daemon).await?;
    network::watch::first_look(daemon).await;
    let watching = tokio::spawn(network::watch::run(daemon.clone()));
    let mut collecting = tokio::spawn(network::collect_garbage(daemon.clone(), 0));

    let streaming = streaming::Server::bind(&config.streaming).await?;
    let (listener, own_socket) = match options.inherited.take() {
        Some(inherited) => (inherited, false),
        None => (bind(config)?, true),
    };
    let failed = |source| Error::Io { action: "listen on", path: config.server.socket.clone(), source };
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let handlers = |kind| signal(kind).map_err(|error| Error::internal("install a signal handler", error));
    let (mut term, mut int, mut hup) = (
        handlers(SignalKind::terminate())?,
        handlers(SignalKind::interrupt())?,
        handlers(SignalKind::hangup())?,
    );

    let (shutdown, ending) = watch::channel(false);
    let urls = streaming.urls();
    tokio::spawn(streaming.run(daemon.clone(), ending.clone()));
    let mut server = tokio::spawn(run_server(daemon.clone(), urls, listener, ending));
    let mut identity = Identity { file: options.config_file.clone(), reloads: 0, error: None };
    identity.write(daemon)?;
    tracing::info!(socket = %config.server.socket.display(), "ready");
    (options.notify)(Stage::Ready);

    // The reload whose collection of garbage is due. One at a time: a plugin that hangs must not have them pile up.
    let mut due = None;
    loop {
        if collecting.is_finished()
            && let Some(reload) = due.take()
        {
            collecting = tokio::spawn(network::collect_garbage(daemon.clone(), reload));
        }
        tokio::select! {
            _ = &mut collecting, if due.is_some() => {}
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {
                (options.notify)(Stage::Reloading);
                identity.reloads += 1;
                identity.error = reload(daemon, &options).await.err();
                daemon.networks.reloaded.notify_one();
                due = Some(identity.reloads);
                if let Err(error) = identity.write(daemon) {
                    tracing::error!(error = %error.sentence(), "the reload cannot be noted");
                }
                (options.notify)(Stage::Ready);
            }
            ended = &mut server => {
                return ended.unwrap_or_else(|error| Err(Error::internal("serve", error)));
            }
        }
    }

    tracing::info!("stopping; pods go on");
    watching.abort();
    (options.notify)(Stage::Stopping);
    shutdown.send_replace(true);
    let drain = Duration::from_secs(config.server.drain_seconds);
    if tokio::time::timeout(drain, &mut server).await.is_err() {
        tracing::warn!(seconds = config.server.drain_seconds, "calls that are still under way are given up");
        server.abort();
    }
    if own_socket {
        let _ = fs::remove_file(&config.server.socket);
    }
    // The parser is not left running on its own; it has a deadline.
    if let Some(loading) = loading {
        let _ = loading.await;
    }
    let _ = fs::remove_file(daemon.run.join(IDENTITY));
    Ok(())
}

/// Beside everything else: the parser may take seconds where the policy is new. Who needs the profile meanwhile waits for it.
fn load_apparmor(daemon: Arc<Daemon>) -> Option<tokio::task::JoinHandle<()>> {
    // What is wrong has been logged, and is told by Status.
    daemon.apparmor.enabled().then(|| tokio::task::spawn_blocking(move || drop(daemon.apparmor.ensure())))
}

async fn run_server(
    daemon: Arc<Daemon>,
    urls: Arc<streaming::Urls>,
    listener: UnixListener,
    shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let limit = daemon.config().server.max_message_bytes;
    let group = !daemon.config().server.group.is_empty();
    let service = Service::new(daemon, urls, shutdown.clone());
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let image =
        ImageServiceServer::new(service).max_decoding_message_size(limit).max_encoding_message_size(limit);
    let incoming = UnixListenerStream::new(listener).filter(move |stream| match stream {
        Ok(stream) => welcome(stream, group),
        Err(_) => true,
    });
    let mut ending = shutdown;
    let end = async move {
        // An error means that nobody can ask for the end any more.
        let _ = ending.wait_for(|ending| *ending).await;
    };
    Server::builder()
        .trace_fn(|request| tracing::debug_span!("rpc", path = %request.uri().path()))
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(incoming, end)
        .await
        .map_err(|error| Error::internal("serve", error))
}

/// Who may connect is decided by the socket's mode; this holds where an inherited socket's is too wide.
fn welcome(stream: &UnixStream, group: bool) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own || group => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a connection is refused");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a connection without credentials is refused");
            false
        }
    }
}

/// Reads the configuration again. A refused one changes nothing.
async fn reload(daemon: &Arc<Daemon>, options: &Options) -> Result<(), String> {
    let loaded = Config::load(&options.config_file, options.config_required);
    let applied = match loaded {
        Ok(config) => {
            let level = config.log.level.clone();
            let shared = daemon.clone();
            let applied = blocking(debug_span!("reload"), move || shared.reload(config)).await;
            applied.map_err(|error| error.sentence()).and_then(|fixed| {
                (options.set_log_level)(&level)?;
                Ok(fixed)
            })
        }
        Err(error) => Err(runtime::failure::sentence(&error)),
    };
    match applied {
        Ok(fixed) if fixed.is_empty() => tracing::info!("the configuration was read again"),
        Ok(fixed) => tracing::warn!(keys = fixed.join(", "), "read again; these changes need a restart"),
        Err(error) => {
            tracing::error!(error, "the new configuration is refused; the old one stays");
            return Err(error);
        }
    }
    Ok(())
}

/// Which daemon serves here, and what became of the last reload.
struct Identity {
    file: PathBuf,
    reloads: u64,
    error: Option<String>,
}

impl Identity {
    fn write(&self, daemon: &Daemon) -> Result<(), Error> {
        let value = json!({
            "pid": std::process::id(),
            "config_file": self.file,
            "reloads": self.reloads,
            "reload_error": self.error,
        });
        crate::records::write(&daemon.run.join(IDENTITY), &value)
    }
}

/// How long a directory that is in use is waited for: a daemon that is ending may still have it.
const LOCK_DEADLINE: Duration = Duration::from_secs(1);
/// The same where the daemon that has locked it is dead. A process that it was just starting when it was killed holds its locks until it
/// executes its program: a moment later, but on a busy machine the next daemon may be much quicker.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Takes both directories; they are held for as long as the descriptors are. Blocks, before anything is served.
fn lock(config: &Config) -> Result<[File; 2], Error> {
    let one = |directory: &Path| {
        let failed = |source| Error::Io { action: "lock", path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let path = directory.join("lock");
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let since = Instant::now();
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    note_holder(&file);
                    return Ok(file);
                }
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < LOCK_DEADLINE => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(rustix::io::Errno::WOULDBLOCK)
                    if since.elapsed() < ORPHAN_DEADLINE && holder_is_dead(&file) =>
                {
                    if !told {
                        tracing::warn!(lock = %path.display(), "a process that a dead daemon was starting still has its lock: it is waited for");
                        told = true;
                    }
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(Error::FailedPrecondition {
                        what: "directory",
                        id: directory.display().to_string(),
                        reason: "another podwrightd uses it; give each its own paths.state and paths.run"
                            .into(),
                    });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    };
    Ok([one(&config.paths.state)?, one(&config.paths.run)?])
}

/// Writes into a lock whose it is. Where that cannot be, on a full disk, the next daemon is less patient.
fn note_holder(mut lock: &File) {
    let _ = lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()));
}

/// Whether the daemon that has written itself into a lock does not live any more. One that has not counts as alive.
fn holder_is_dead(lock: &File) -> bool {
    let mut text = [0; 16];
    let length = lock.read_at(&mut text, 0).unwrap_or(0);
    let pid = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return false };
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

/// Listens on the configured socket. A socket that is there is a dead daemon's: the lock is ours. It is bound under
/// another name and renamed, so that it is never reachable with a wider mode than the configured one.
fn bind(config: &Config) -> Result<std::os::unix::net::UnixListener, Error> {
    let path = &config.server.socket;
    let failed = |source| Error::Io { action: "make the socket", path: path.clone(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed(io::Error::other("something that is no socket is in its place")));
        }
        _ => {}
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut temporary = path.clone().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let listener = bind_private(&temporary).map_err(failed)?;
    if !config.server.group.is_empty() {
        let gid = group_id(&config.server.group)?;
        std::os::unix::fs::chown(&temporary, None, Some(gid)).map_err(failed)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        if path.parent() == Some(config.paths.run.as_path()) {
            // The group has to get as far as the socket, and no further.
            std::os::unix::fs::chown(&config.paths.run, None, Some(gid)).map_err(failed)?;
            fs::set_permissions(&config.paths.run, fs::Permissions::from_mode(0o710)).map_err(failed)?;
        }
    }
    fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// A listening socket of mode 0600 from its first moment: bound, narrowed, and only then listened on.
fn bind_private(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket.into())
}

/// A group by number or by its name in /etc/group, which is read here: a static program has no NSS.
fn group_id(group: &str) -> Result<u32, Error> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let path = Path::new("/etc/group");
    let mut text = String::new();
    File::open(path)
        .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MAX_GROUP_BYTES), &mut text))
        .map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
    let line = text.lines().find(|line| line.split(':').next() == Some(group));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok())
        .ok_or_else(|| Error::invalid("server.group", format!("{group} is no group of /etc/group")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_id("0").unwrap(), 0);
        assert_eq!(group_id("root").unwrap(), 0);
        assert!(group_id("no-such-group-here").is_err());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.socket = directory.path().join("p.sock");
        drop(bind(&config).unwrap());
        let _again = bind(&config).unwrap();
        let mode = fs::metadata(&config.server.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&config.server.socket).unwrap();
        fs::write(&config.server.socket, "data").unwrap();
        assert!(bind(&config).is_err());
        assert_eq!(fs::read(&config.server.socket).unwrap(), b"data");
    }

    #[test]
    fn a_directory_has_one_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.paths.state = directory.path().join("state");
        config.paths.run = directory.path().join("run");
        let held = lock(&config).unwrap();
        let refused = lock(&config).unwrap_err();
        assert!(refused.to_string().contains("another podwrightd"), "{refused}");
        drop(held);
        lock(&config).unwrap();
    }
}
