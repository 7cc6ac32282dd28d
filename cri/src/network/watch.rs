//! Keeps the [`Outlook`](super::outlook::Outlook) current: one inotify(7) instance over all directories that matter.
//!
//! A directory that is not there yet is waited for in the nearest one above it that is. After each event everything is looked
//! at anew, so that no event has to be understood, and none that was missed hurts for long.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tracing::debug_span;

use super::limit;
use super::outlook::{self, Choice, Outlook};
use crate::cni::Network;
use crate::cni::config::Version;
use crate::config::Config;
use crate::daemon::{Daemon, blocking};

/// How long changes may go on before they are looked at: an installer writes several files.
const SETTLE: Duration = Duration::from_millis(50);

/// How often plugins that can say so are asked whether they are ready: as often as kubelet asks us.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Looks once, before anybody is answered.
pub async fn first_look(daemon: &Arc<Daemon>) {
    let config = daemon.config();
    if let Ok(outlook) = blocking(debug_span!("network_look"), move || Ok(outlook::look(&config))).await {
        publish(daemon, &outlook);
    }
}

/// Watches for as long as the daemon lives.
pub async fn run(daemon: Arc<Daemon>) {
    let mut inotify = match instance() {
        Ok(inotify) => Some(inotify),
        Err(error) => {
            // Pods are attached by what is on disk at that moment; only the condition is late.
            tracing::warn!(%error, "CNI directories cannot be watched: they are looked at every five seconds");
            None
        }
    };
    let mut examined = None;
    let mut watched = BTreeSet::new();
    loop {
        let config = daemon.config();
        if let Some(inotify) = &inotify {
            arm(inotify.get_ref(), &config, &mut watched);
        }
        let outlook = {
            let config = config.clone();
            blocking(debug_span!("network_look"), move || Ok(outlook::look(&config))).await
        };
        if let Ok(outlook) = outlook {
            examine(&daemon, &config, outlook, &mut examined).await;
        }
        let inotify_fails = inotify.is_none();
        tokio::select! {
            () = changed(&mut inotify) => tokio::time::sleep(SETTLE).await,
            () = daemon.networks.reloaded.notified() => {}
            () = tokio::time::sleep(STATUS_INTERVAL), if inotify_fails || asks(&daemon) => {}
        }
        if let Some(inotify) = &inotify {
            drain(inotify.get_ref());
        }
    }
}

/// Whether the network's plugins are asked how they are: those that can say so always, any others while they are in trouble.
fn asks(daemon: &Daemon) -> bool {
    let outlook = daemon.networks.outlook();
    matches!(&outlook.choice, Choice::Cni(list) if list.version >= Version::V1_1 || outlook.trouble.is_some())
}

#[allow(
    deprecated,
    reason = "its replacement is unsafe; an OwnedFd keeps its descriptor, which is what that is about"
)]
fn instance() -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// Publishes what was seen, and then what its plugins say of it: VERSION until they have answered it well, STATUS every time.
/// `examined` is the outlook whose plugins have.
async fn examine(daemon: &Daemon, config: &Config, outlook: Outlook, examined: &mut Option<Outlook>) {
    let Choice::Cni(list) = &outlook.choice else {
        *examined = None;
        return publish(daemon, &outlook);
    };
    if outlook.trouble.is_some() {
        *examined = None;
        return publish(daemon, &outlook);
    }
    let network = Network {
        list,
        bin_dirs: &config.network.cni_bin_dirs,
        limit: limit(&config.network),
        parent: &daemon.program,
    };
    let mut trouble = None;
    if examined.as_ref() != Some(&outlook) {
        // Pods need not wait for the plugins' answers; but a network that is in trouble stays so until they have answered.
        let before = daemon.networks.outlook();
        if before.choice != outlook.choice || before.trouble.is_none() {
            publish(daemon, &outlook);
        }
        trouble = network.versions().await.err().map(|error| error.to_string());
    }
    // What failed may have been in the middle of its own installation: it is asked again.
    *examined = trouble.is_none().then(|| outlook.clone());
    if trouble.is_none() && list.version >= Version::V1_1 {
        trouble = network.status().await.err().map(|error| error.to_string());
    }
    let trouble =
        trouble.map(|trouble| format!("network {} of {}: {trouble}", list.name, list.file.display()));
    publish(daemon, &Outlook { trouble, ..outlook });
}

/// Shows it to everybody, and tells the log what is new.
fn publish(daemon: &Daemon, outlook: &Outlook) {
    let before = daemon.networks.outlook();
    if *before == *outlook {
        return;
    }
    daemon.networks.set_outlook(outlook.clone());
    for fault in outlook.faults.iter().filter(|fault| !before.faults.contains(fault)) {
        tracing::error!("CNI configuration ignored: {fault}");
    }
    let (was, is) = (before.readiness(), outlook.readiness());
    if was != is || before.choice != outlook.choice {
        let network = match &outlook.choice {
            Choice::Cni(list) => list.name.as_str(),
            _ => "",
        };
        tracing::info!(ready = is.ready, network, reason = is.reason, message = is.message, "pod network");
    }
}

/// Watches every directory that decides something, and no other any more. Adding a watch that is there changes nothing.
fn arm(inotify: &OwnedFd, config: &Config, watched: &mut BTreeSet<i32>) {
    let mut needed = BTreeSet::new();
    let mut directories: BTreeSet<&PathBuf> = config.network.cni_bin_dirs.iter().collect();
    for handler in config.runtime.handlers.keys() {
        directories.extend(outlook::conf_dirs(config, handler));
    }
    let events = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    let appearing = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR;
    for directory in directories {
        let mut place: &Path = directory;
        let mut wanted = events;
        loop {
            match inotify::add_watch(inotify, place, wanted | WatchFlags::MASK_ADD) {
                Err(Errno::NOENT | Errno::NOTDIR) => match place.parent() {
                    Some(parent) => (place, wanted) = (parent, appearing),
                    None => break,
                },
                Err(errno) => {
                    tracing::warn!(directory = %place.display(), %errno, "a CNI directory cannot be watched");
                    break;
                }
                Ok(watch) => {
                    needed.insert(watch);
                    break;
                }
            }
        }
    }
    for watch in watched.difference(&needed) {
        // Of a directory that is gone the kernel has removed it already.
        let _ = inotify::remove_watch(inotify, *watch);
    }
    *watched = needed;
}

/// Returns when something happened; never without an instance.
async fn changed(inotify: &mut Option<AsyncFd<OwnedFd>>) {
    match inotify {
        Some(fd) => match fd.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "CNI directories cannot be watched any more");
                *inotify = None;
            }
        },
        None => std::future::pending().await,
    }
}

/// Reads all events away.
fn drain(inotify: &OwnedFd) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    while reader.next().is_ok() {}
}
