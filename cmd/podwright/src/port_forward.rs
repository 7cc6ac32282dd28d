//! `podwright port-forward`: ports of a pod on this machine's loopback.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use k8s_cri::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::Outcome;
use crate::client::Client;
use crate::exec::exit_code;
use crate::names::{self, Named};
use crate::{output, session};

/// How long the pod may still answer a client that has said all. Its end cannot be told to the pod while it is listened to.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// Arguments of `port-forward`.
#[derive(Args)]
pub(crate) struct PortForwardArguments {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// The pod or a container of it: name, id or the beginning of one.
    pod: String,
    /// [LOCAL:]REMOTE; without LOCAL the same number, LOCAL 0 takes a free one.
    #[arg(required = true)]
    ports: Vec<String>,
}

/// Forwards until a signal.
pub(crate) async fn port_forward(mut client: Client, arguments: PortForwardArguments) -> Outcome {
    let pod = match names::find(&mut client, &arguments.pod).await? {
        Named::Pod(pod) => pod.id,
        Named::Container(container) => container.pod_sandbox_id,
    };
    let mut forwards = tokio::task::JoinSet::new();
    for text in &arguments.ports {
        let (local, remote) = ports(text)?;
        let listener = TcpListener::bind((arguments.address.as_str(), local)).await;
        let listener = listener.with_context(|| format!("listen on {}:{local}", arguments.address))?;
        output::line(&format!("{} -> {remote}", listener.local_addr()?));
        forwards.spawn(listen(listener, client.runtime.clone(), pod.clone(), remote));
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
        Some(ended) = forwards.join_next() => ended??,
    }
    Ok(exit_code(0))
}

type Runtime = v1::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>;

async fn listen(listener: TcpListener, runtime: Runtime, pod: String, port: u16) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let (runtime, pod) = (runtime.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = forward(stream, runtime, pod, port).await {
                output::error(&format!("podwright: port {port}: {}", crate::client::one_line(&error)));
            }
        });
    }
}

/// One connection, in a session of its own.
async fn forward(mut local: TcpStream, mut runtime: Runtime, pod: String, port: u16) -> Result<()> {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod, port: vec![i32::from(port)] };
    let url = runtime.port_forward(request).await?.into_inner().url;
    let (mut sink, mut stream) = session::connect(&url, "v4.channel.k8s.io").await?.split();
    let (mut from_local, mut to_local) = local.split();
    let up = async {
        // In front of the data is the number of its channel, 0.
        let mut buffer = vec![0; 1 + 32 * 1024];
        loop {
            let count = from_local.read(&mut buffer[1..]).await?;
            if count == 0 {
                tokio::time::sleep(LAST_ANSWER).await;
                return Ok::<_, anyhow::Error>(());
            }
            sink.send(Message::Binary(buffer[..=count].to_vec().into())).await?;
        }
    };
    let down = async {
        // The first message of each channel is the port's number.
        let mut greeted = [false; 2];
        while let Some(message) = stream.next().await {
            let payload = match message? {
                Message::Close(_) => break,
                message => message.into_data(),
            };
            let Some((&channel @ 0..=1, data)) = payload.split_first() else { continue };
            if !std::mem::replace(&mut greeted[usize::from(channel)], true) {
                continue;
            }
            if channel == 1 {
                bail!("{}", String::from_utf8_lossy(data));
            }
            to_local.write_all(data).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// `[LOCAL:]REMOTE`.
fn ports(text: &str) -> Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let number = |part: &str| part.parse::<u16>().with_context(|| format!("{text:?} is not [LOCAL:]REMOTE"));
    let (local, remote) = (if local.is_empty() { 0 } else { number(local)? }, number(remote)?);
    if remote == 0 {
        bail!("{text:?}: port 0 is no port of a pod");
    }
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports(":80").unwrap(), (0, 80));
        for bad in ["", "x", "80:", "80:0", "99999"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
