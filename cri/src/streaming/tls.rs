//! TLS of the streaming server: a certificate and its key, and where a client CA is given, clients must have a certificate of it.
//!
//! Certificates are renewed by replacing their files, or the symlinks to them as kubelet does. Whether they were is looked up for each
//! connection, which costs three calls of stat(2), so that nobody has to be told. Files that cannot be used, such as a new certificate whose
//! key is not written yet, change nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::config::Streaming;
use crate::error::Error;

/// What accepts TLS connections.
pub(super) struct Tls {
    config: Streaming,
    current: Mutex<Current>,
}

/// What the files said when they were last read.
struct Current {
    acceptor: TlsAcceptor,
    files: Vec<Option<Version>>,
}

/// Tells one content of a file from another: device, inode, size, and when it was written, in seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Tls {
    /// Reads the files. None: none is configured.
    pub(super) fn load(config: &Streaming) -> Result<Option<Self>, Error> {
        if config.tls_cert.as_os_str().is_empty() {
            return Ok(None);
        }
        // Looked at first: what is replaced while it is read is read again.
        let files = versions(config);
        let current = Mutex::new(Current { acceptor: acceptor(config)?, files });
        Ok(Some(Self { config: config.clone(), current }))
    }

    /// As the files are now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let files = versions(&self.config);
        if files != current.files {
            current.files = files;
            match acceptor(&self.config) {
                Ok(acceptor) => {
                    tracing::info!("the certificate of the streaming server was read again");
                    current.acceptor = acceptor;
                }
                Err(error) => {
                    tracing::warn!(error = %error.sentence(), "the streaming server keeps its old certificate");
                }
            }
        }
        current.acceptor.clone()
    }
}

fn versions(config: &Streaming) -> Vec<Option<Version>> {
    let version = |path: &Path| {
        let file = fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    [&config.tls_cert, &config.tls_key, &config.tls_client_ca].map(|path| version(path)).to_vec()
}

fn acceptor(config: &Streaming) -> Result<TlsAcceptor, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("set up TLS", error))?;
    let builder = if config.tls_client_ca.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let path = &config.tls_client_ca;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| unusable("streaming.tls_client_ca", path, error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(
            verifier.map_err(|error| unusable("streaming.tls_client_ca", path, error))?,
        )
    };
    let key = PrivateKeyDer::from_pem_file(&config.tls_key)
        .map_err(|error| unusable("streaming.tls_key", &config.tls_key, error))?;
    let mut server = builder
        .with_single_cert(certificates(&config.tls_cert)?, key)
        .map_err(|error| unusable("streaming.tls_cert", &config.tls_cert, error))?;
    // Upgrades are of HTTP/1.1 only.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |error| unusable("streaming.tls_cert", path, error);
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn unusable(key: &str, path: &Path, error: impl std::error::Error) -> Error {
    Error::invalid(key, format!("{} cannot be used: {error}", path.display()))
}
