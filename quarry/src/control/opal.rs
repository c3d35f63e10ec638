//! Self-encrypting drives: what an operator may see of them. Never a key.

use std::sync::{Arc, Weak};
use std::time::Duration;

use block_opal::OpalDevice;
use serde_json::{Value, json};

use super::Control;
use super::params::Params;
use super::rpc::Failure;
use crate::config::reader::expected;

/// How long a drive may be at something else: it tries a PIN, or its cluster does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Control {
    /// `opal.status`: one drive, or all of them.
    pub(super) async fn drive_status(&self, mut params: Params) -> Result<Value, Failure> {
        let names: Vec<String> = if params.has("device") {
            vec![params.text("device", "\"disk\"")?]
        } else {
            let _ = params.take("device");
            self.drives.keys().cloned().collect()
        };
        params.finish()?;
        let mut drives = Vec::new();
        for name in names {
            let status = ask(self.drive(&name)?, |drive| drive.status()).await?;
            let mut status = serde_json::to_value(status)
                .map_err(|error| Failure::refused(format!("the status cannot be shown: {error}")))?;
            if let Some(status) = status.as_object_mut() {
                status.insert("device".to_owned(), json!(name));
            }
            drives.push(status);
        }
        Ok(json!({ "drives": drives }))
    }

    /// `opal.psid`: the PIN on the label.
    pub(super) async fn drive_psid(&self, mut params: Params) -> Result<Value, Failure> {
        let name = params.text("device", "\"disk\"")?;
        params.finish()?;
        let psid = ask(self.drive(&name)?, |drive| drive.psid()).await?;
        tracing::info!(device = name, "the PSID was shown by the control socket");
        Ok(json!({ "device": name, "psid": psid.as_str() }))
    }

    fn drive(&self, name: &str) -> Result<Arc<OpalDevice>, Failure> {
        self.drives.get(name).and_then(Weak::upgrade).ok_or_else(|| {
            let help = match self.drives.is_empty() {
                true => "no device of this server has type = \"opal\"".to_owned(),
                false => expected(name, self.drives.keys().map(String::as_str)),
            };
            Failure::params(format!("there is no self-encrypting disk `{name}`: {help}"))
        })
    }
}

/// Asks a drive, which may take its time.
async fn ask<T: Send + 'static>(
    drive: Arc<OpalDevice>,
    question: impl FnOnce(&OpalDevice) -> Option<T> + Send + 'static,
) -> Result<T, Failure> {
    let answer = tokio::task::spawn_blocking(move || question(&drive));
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(_) => Err(Failure::refused("the disk's thread has ended; see the log of the server")),
        Err(_) => {
            Err(Failure::refused("the disk does not answer: it waits for the device below; try again later"))
        }
    }
}
