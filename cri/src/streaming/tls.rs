//! TLS of the streaming server: a certificate and its key, and where a client CA is given, clients must have a certificate of it.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::config::Streaming;
use crate::error::Error;

/// What accepts TLS connections. None: none is configured.
pub(super) fn acceptor(config: &Streaming) -> Result<Option<TlsAcceptor>, Error> {
    if config.tls_cert.as_os_str().is_empty() {
        return Ok(None);
    }
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
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |error| unusable("streaming.tls_cert", path, error);
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn unusable(key: &str, path: &Path, error: impl std::error::Error) -> Error {
    Error::invalid(key, format!("{} cannot be used: {error}", path.display()))
}
