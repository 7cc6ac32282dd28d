//! A blocking CRI client over k8s-cri, an independent binding of the published protocol: the two ends
//! never share a mistake. Tests read as plain lines; those that need several calls at once use a
//! client per thread.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{Deadline, seconds};

/// The largest message accepted, as kubelet sets it.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// What `ExecSync` gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// The command's exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// One connection to a runtime's socket.
#[derive(Debug)]
pub struct Client {
    tokio: Runtime,
    socket: PathBuf,
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

macro_rules! calls {
    ($($service:ident $name:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $(
                #[doc = concat!("The call `", stringify!($name), "`.")]
                pub fn $name(&self, request: v1::$request) -> Result<v1::$response, Status> {
                    let mut client = self.$service.clone();
                    let mut request = tonic::Request::new(request);
                    request.set_timeout(seconds(60));
                    self.tokio.block_on(client.$name(request)).map(tonic::Response::into_inner)
                }
            )*
        }
    };
}

calls! {
    runtime version(VersionRequest) -> VersionResponse;
    runtime status(StatusRequest) -> StatusResponse;
    runtime runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    runtime update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    runtime run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    runtime stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    runtime remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    runtime pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    runtime list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    runtime create_container(CreateContainerRequest) -> CreateContainerResponse;
    runtime start_container(StartContainerRequest) -> StartContainerResponse;
    runtime stop_container(StopContainerRequest) -> StopContainerResponse;
    runtime remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    runtime list_containers(ListContainersRequest) -> ListContainersResponse;
    runtime container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    runtime update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    runtime reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    runtime exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    runtime exec(ExecRequest) -> ExecResponse;
    runtime attach(AttachRequest) -> AttachResponse;
    runtime port_forward(PortForwardRequest) -> PortForwardResponse;
    runtime container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    runtime list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    runtime pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    runtime list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    runtime checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    runtime list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    runtime list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    image list_images(ListImagesRequest) -> ListImagesResponse;
    image image_status(ImageStatusRequest) -> ImageStatusResponse;
    image pull_image(PullImageRequest) -> PullImageResponse;
    image remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

/// A connection to the socket at `path`.
pub(crate) async fn connect(path: PathBuf) -> Result<Channel> {
    let shown = path.display().to_string();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.with_context(|| format!("connect to {shown}"))
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = tokio.block_on(connect(path.to_owned()))?;
        let runtime = RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
        let image = ImageServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
        Ok(Self { tokio, socket: path.to_owned(), channel, runtime, image })
    }

    /// The socket this client is connected to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio.block_on(work)
    }

    /// Sends an empty request to any method by its path, such as `/runtime.v1.RuntimeService/Version`, also to
    /// those the binding does not know. An answer that does not come within a second counts as one.
    pub fn raw_call(&self, path: &'static str) -> Result<(), Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            grpc.unary(tonic::Request::new(()), path, codec).await.map(drop)
        };
        self.tokio.block_on(async { tokio::time::timeout(seconds(1), call).await.unwrap_or(Ok(())) })
    }

    /// Any unary call by its path with messages of one's own, for fields that the binding does not know.
    pub fn call<Request, Response>(&self, path: &'static str, request: Request) -> Result<Response, Status>
    where
        Request: prost::Message + Default + 'static,
        Response: prost::Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let mut request = tonic::Request::new(request);
        request.set_timeout(seconds(60));
        self.tokio.block_on(async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<Request, Response>::default();
            grpc.unary(request, path, codec).await.map(tonic::Response::into_inner)
        })
    }

    /// Listens to events from now on.
    pub fn subscribe(&self) -> Result<Events<'_>, Status> {
        Ok(Events { client: self, stream: self.tokio.block_on(self.listen())? })
    }

    /// Sends `RunPodSandbox` and drops the connection's interest in it after `patience`, as a client does
    /// that gave up. True when the reply came in time.
    pub fn abandon_run_pod_sandbox(&self, config: v1::PodSandboxConfig, patience: Duration) -> bool {
        let mut client = self.runtime.clone();
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.tokio
            .block_on(async { tokio::time::timeout(patience, client.run_pod_sandbox(request)).await.is_ok() })
    }

    /// Makes a sandbox and returns its id.
    pub fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.run_pod_sandbox(request)?.pod_sandbox_id)
    }

    /// Makes a container in a sandbox and returns its id.
    pub fn create(
        &self,
        pod_sandbox_id: &str,
        config: &v1::ContainerConfig,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.create_container(request)?.container_id)
    }

    /// Starts a container.
    pub fn start(&self, id: &str) -> Result<(), Status> {
        self.start_container(v1::StartContainerRequest { container_id: id.to_owned() }).map(drop)
    }

    /// Stops a container, killing it after `timeout_s` seconds.
    pub fn stop(&self, id: &str, timeout_s: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: timeout_s };
        self.stop_container(request).map(drop)
    }

    /// Removes a container.
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        self.remove_container(v1::RemoveContainerRequest { container_id: id.to_owned() }).map(drop)
    }

    /// Stops a sandbox and everything in it.
    pub fn stop_pod(&self, id: &str) -> Result<(), Status> {
        self.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(drop)
    }

    /// Removes a sandbox.
    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(drop)
    }

    /// The status of a container.
    pub fn container(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.container_status(request)?.status.ok_or_else(|| Status::internal("no status in the reply"))
    }

    /// The status of a sandbox.
    pub fn pod(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.pod_sandbox_status(request)?.status.ok_or_else(|| Status::internal("no status in the reply"))
    }

    /// The `info` map of a verbose `PodSandboxStatus`.
    pub fn pod_info(&self, id: &str) -> Result<std::collections::HashMap<String, String>, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        Ok(self.pod_sandbox_status(request)?.info)
    }

    /// The `info` map of a verbose `ContainerStatus`.
    pub fn container_info(&self, id: &str) -> Result<std::collections::HashMap<String, String>, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        Ok(self.container_status(request)?.info)
    }

    /// All containers.
    pub fn containers(&self) -> Result<Vec<v1::Container>, Status> {
        Ok(self.list_containers(v1::ListContainersRequest { filter: None })?.containers)
    }

    /// All sandboxes.
    pub fn pods(&self) -> Result<Vec<v1::PodSandbox>, Status> {
        Ok(self.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None })?.items)
    }

    /// Runs a command in a container; `timeout_s` 0 means no limit.
    pub fn exec_in(&self, id: &str, command: &[&str], timeout_s: i64) -> Result<ExecOutput, Status> {
        let reply = self.exec_sync(v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: timeout_s,
        })?;
        Ok(ExecOutput {
            code: reply.exit_code,
            stdout: String::from_utf8_lossy(&reply.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&reply.stderr).into_owned(),
        })
    }

    /// Blocks until the container has exited, and returns its status. Woken by container events; where
    /// the daemon has none, it asks again and again as kubelet's pod lifecycle generator does.
    pub fn wait_for_exit(&self, id: &str, deadline: Deadline) -> Result<v1::ContainerStatus> {
        self.wait_for_state(id, v1::ContainerState::ContainerExited, deadline)
    }

    /// Blocks until the container is in `state`, and returns its status.
    pub fn wait_for_state(
        &self,
        id: &str,
        state: v1::ContainerState,
        deadline: Deadline,
    ) -> Result<v1::ContainerStatus> {
        let left = deadline.left().unwrap_or_default();
        self.tokio
            .block_on(async { tokio::time::timeout(left, self.state_reached(id, state)).await })
            .with_context(|| format!("container {id} did not become {}", state.as_str_name()))?
            .with_context(|| format!("waiting for container {id}"))
    }

    /// Blocks until the sandbox is in `state`, woken like [`Self::wait_for_state`].
    pub fn wait_for_pod_state(&self, id: &str, state: v1::PodSandboxState, deadline: Deadline) -> Result<()> {
        let reached = async {
            let mut events = self.listen().await?;
            loop {
                let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
                let reply = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
                if reply.status.is_some_and(|status| status.state == state as i32) {
                    return Ok::<_, Status>(());
                }
                self.wake(&mut events).await?;
            }
        };
        self.tokio
            .block_on(async { tokio::time::timeout(deadline.left().unwrap_or_default(), reached).await })
            .with_context(|| format!("pod {id} did not become {}", state.as_str_name()))?
            .with_context(|| format!("waiting for pod {id}"))
    }

    async fn state_reached(
        &self,
        id: &str,
        state: v1::ContainerState,
    ) -> Result<v1::ContainerStatus, Status> {
        let mut events = self.listen().await?;
        loop {
            let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            let reply = self.runtime.clone().container_status(request).await?.into_inner();
            if let Some(status) = reply.status
                && status.state == state as i32
            {
                return Ok(status);
            }
            self.wake(&mut events).await?;
        }
    }

    async fn listen(&self) -> Result<EventStream, Status> {
        let request = v1::GetEventsRequest {};
        Ok(self.runtime.clone().get_container_events(request).await?.into_inner())
    }

    /// Returns with the next event, or once a stream that has ended is replaced by a new one.
    async fn wake(&self, events: &mut EventStream) -> Result<(), Status> {
        if !matches!(events.message().await, Ok(Some(_))) {
            *events = self.listen().await?;
        }
        Ok(())
    }
}

type EventStream = tonic::Streaming<v1::ContainerEventResponse>;

/// What happens to pods and containers, as it is told.
#[derive(Debug)]
pub struct Events<'client> {
    client: &'client Client,
    stream: EventStream,
}

impl Events<'_> {
    /// Blocks until the next event.
    pub fn next(&mut self, deadline: Deadline) -> Result<v1::ContainerEventResponse> {
        let left = deadline.left().unwrap_or_default();
        let stream = &mut self.stream;
        self.client
            .tokio
            .block_on(async { tokio::time::timeout(left, stream.message()).await })
            .context("no event came before the deadline")??
            .context("the daemon ended the events")
    }
}
