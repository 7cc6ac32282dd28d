//! The connection to the daemon: CRI over its unix socket.

use std::path::Path;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The largest message accepted in bytes: that of the daemon.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Both services of one daemon.
pub(crate) struct Client {
    /// Pods and containers.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// Root filesystem directories, which CRI calls images.
    pub(crate) image: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects to the daemon's socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://podwright").connect_with_connector(connector).await;
        let channel = channel.with_context(|| {
            format!("cannot reach podwrightd at {} (is it running? see `podwright doctor`)", socket.display())
        })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            image: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        })
    }

    /// The daemon's name and versions.
    pub(crate) async fn version(&mut self) -> Result<v1::VersionResponse> {
        Ok(self.runtime.version(v1::VersionRequest { version: "0.1.0".into() }).await?.into_inner())
    }

    /// Every container.
    pub(crate) async fn containers(&mut self) -> Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest { filter: None };
        Ok(self.runtime.list_containers(request).await?.into_inner().containers)
    }

    /// Every pod.
    pub(crate) async fn pods(&mut self) -> Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest { filter: None };
        Ok(self.runtime.list_pod_sandbox(request).await?.into_inner().items)
    }

    /// The status of one container, by its full id, with the daemon's own details where asked for.
    pub(crate) async fn container_status(
        &mut self,
        id: &str,
        verbose: bool,
    ) -> Result<v1::ContainerStatusResponse> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        Ok(self.runtime.container_status(request).await?.into_inner())
    }
}

/// An error and its causes on one line; of a gRPC status only its sentence.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let parts: Vec<String> = error
        .chain()
        .map(|cause| match cause.downcast_ref::<tonic::Status>() {
            Some(status) => status.message().to_owned(),
            None => cause.to_string(),
        })
        .collect();
    let mut line = String::new();
    for part in parts {
        // A transport error repeats itself in its causes.
        if !part.is_empty() && !line.contains(&part) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&part.replace('\n', " "));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_without_repeats() {
        let error = anyhow::Error::new(tonic::Status::not_found("no rootfs \"x\"")).context("run");
        assert_eq!(one_line(&error), "run: no rootfs \"x\"");
    }
}
