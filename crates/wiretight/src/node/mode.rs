//! The node's part of `wiretight mode`. The configuration file is the source of truth and is written by the command
//! line, as this process may not write it. Here a mode is tried out and the changed file is applied.

use std::sync::Arc;
use std::time::Duration;

use super::daemon::{Daemon, RequestError};
use crate::admin::api::{ModeRequest, ModeStatus};
use crate::config::Config;
use crate::intercept::{InterceptError, Interception};

const NO_SECTION: RequestError = RequestError::NotHere(
    "transparent interception is not configured on this node: add [intercept] to its configuration and restart it",
);

impl From<InterceptError> for RequestError {
    fn from(error: InterceptError) -> RequestError {
        match error {
            InterceptError::Operator(error) => RequestError::Refused(error.to_string()),
            error => RequestError::Failed(crate::logging::chain(&error)),
        }
    }
}

/// The current modes and trial.
pub(crate) async fn status(daemon: &Daemon) -> Result<ModeStatus, RequestError> {
    let (config, interception) = of(daemon)?;
    let configured = config.intercept.as_ref().ok_or(NO_SECTION)?.mode;
    let now = interception.status_now().await;
    Ok(ModeStatus {
        in_force: now.mode,
        configured,
        trial: now.trial,
        error: now.error,
        file: config.path.clone(),
        pending: pending(&config),
    })
}

/// Takes a step and returns the status after it.
pub(crate) async fn step(daemon: &Daemon, asked: ModeRequest) -> Result<ModeStatus, RequestError> {
    let (_, interception) = of(daemon)?;
    let keeper = interception.keeper();
    match asked {
        ModeRequest::Try { mode, seconds } => {
            keeper.begin_trial(mode, Duration::from_secs(seconds)).await?
        }
        ModeRequest::Hold => keeper.hold_trial().await?,
        ModeRequest::TakeUp => {
            daemon.reload().await?;
            interception.settle(&of(daemon)?.0).await;
        }
        ModeRequest::Undo => keeper.undo_trial().await?,
    }
    status(daemon).await
}

fn of(daemon: &Daemon) -> Result<(Arc<Config>, &Interception), RequestError> {
    Ok((daemon.config(), daemon.interception().ok_or(NO_SECTION)?))
}

/// Whether the file differs from the configuration in force, and how.
fn pending(config: &Config) -> Option<String> {
    match Config::load(&config.path) {
        Ok(now) if now == *config => None,
        Ok(_) => Some("it has changes that have not been applied (`wiretight reload`)".into()),
        Err(errors) => Some(errors.to_string()),
    }
}
