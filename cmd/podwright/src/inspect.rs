//! `podwright inspect`.

use std::collections::HashMap;

use anyhow::{Result, bail};
use clap::Args;
use k8s_cri::v1;
use serde_json::{Value, json};

use crate::Outcome;
use crate::client::Client;
use crate::names::{self, Named};
use crate::output;

/// Arguments of `inspect`.
#[derive(Args)]
pub(crate) struct InspectArguments {
    /// A pod, a container or a rootfs: name, id or the beginning of an id.
    name: String,
}

/// Prints a status and the daemon's own details as JSON.
pub(crate) async fn inspect(mut client: Client, arguments: InspectArguments) -> Outcome {
    let value = match names::find(&mut client, &arguments.name).await {
        Ok(Named::Pod(pod)) => {
            let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: true };
            let response = client.runtime.pod_sandbox_status(request).await?.into_inner();
            json!({"pod": response.status, "info": info(response.info)})
        }
        Ok(Named::Container(container)) => {
            let response = client.container_status(&container.id, true).await?;
            json!({"container": response.status, "info": info(response.info)})
        }
        Err(error) => match image(&mut client, &arguments.name).await? {
            Some(value) => value,
            None => return Err(error),
        },
    };
    output::json(&value)
}

/// The status of a rootfs by a reference or id.
pub(crate) async fn image(client: &mut Client, reference: &str) -> Result<Option<Value>> {
    let image = v1::ImageSpec { image: reference.to_owned(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(image), verbose: true };
    let response = match client.image.image_status(request).await {
        Ok(response) => response.into_inner(),
        Err(status) if status.code() == tonic::Code::InvalidArgument => return Ok(None),
        Err(status) => bail!(status),
    };
    Ok(response.image.map(|image| json!({"rootfs": image, "info": info(response.info)})))
}

/// CRI's details are strings, most of which hold JSON: shown as what they are.
fn info(info: HashMap<String, String>) -> Value {
    info.into_iter()
        .map(|(key, text)| {
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            (key, value)
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}
