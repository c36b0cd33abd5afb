//! The rules without a node: at boot, before the network is up, and whenever no node runs.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wiretight_proxy::intercept::rules::{Rules, TABLE};

use super::guard::Guard;
use super::node::MARK;
use super::notices::{Heard, Notices};
use super::table::Table;
use super::{
    FILE, InterceptError, MachineError, OperatorError, file, is_down, keep, kept, lock, nft, routes,
};
use crate::config::Config;
use crate::private_dir::PrivateDir;
use crate::{privilege, sandbox};

/// How often the guard table and the saved rules are checked, and a failure is retried.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Loads the saved rules: at boot, before the network is up. Where the configuration is stricter, it applies: it may have
/// been changed when no node was running. Returns whether anything had to be changed.
///
/// # Errors
/// Also if the saved rules are damaged or missing. Then what the configuration alone drops is loaded before, unless
/// `wiretight down` removed the rules.
pub fn load(state: &PrivateDir, config: Option<&Config>) -> Result<bool, InterceptError> {
    let _lock = lock(state)?;
    load_locked(state, config)
}

/// Loads the saved rules and holds a guard table for them, which `flush ruleset` does not remove. It follows the rules of
/// nodes that start and stop, and restores the main table if it is removed while no node runs. After `wiretight down`
/// there is no guard table, until a node loads rules again. `ready` is called when the rules are in force.
///
/// # Errors
/// As for [`load`], except after `wiretight down`. Also if `rules.json` becomes unreadable: a later version may have
/// written it.
pub fn guard(
    state_dir: &Path,
    config: Option<&Config>,
    ready: impl FnOnce(),
) -> Result<Infallible, InterceptError> {
    let failed =
        |what: &str, e: &dyn std::fmt::Display| MachineError::Rules(format!("{what}: {e}"));
    // Not `open`, which would remove old files, and fail if the file system is read-only.
    let state = PrivateDir::open_of_any_user(state_dir)?;
    if !privilege::keep_net_admin_only().map_err(|e| failed("capabilities", &e))? {
        return Err(MachineError::NotPermitted.into());
    }
    if config.is_none_or(|config| config.node.landlock) {
        sandbox::write_only_in(&[state.path()]).map_err(|e| failed("Landlock", &e))?;
    }
    let notices = Notices::of_table()
        .map_err(|e| failed("cannot subscribe to the kernel's notifications", &e))?;
    let _logs = crate::logging::start();
    if is_down(&state) {
        tracing::warn!("{}", OperatorError::TakenDown);
    } else {
        let _lock = lock(&state)?;
        // If they are loaded, they may be stricter than what is saved, because the disk is read-only.
        if !is_loaded()? || kept(&state)?.is_none() {
            load_locked(&state, config)?;
        }
    }
    let mut guard = Guard::default();
    let mut version = saved_version(&state);
    let mut troubled = follow(&state, &mut guard).inspect_err(report).is_err();
    ready();
    loop {
        match poll(&mut [PollFd::new(&notices, PollFlags::IN)], Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed("cannot wait for notifications", &e).into()),
        }
        let changed = notices.take() != Heard::Nothing || guard.has_fallen() || troubled;
        // When a trial is confirmed, the file changes and the table does not.
        let before = std::mem::replace(&mut version, saved_version(&state));
        if !changed && version == before {
            continue;
        }
        let followed = follow(&state, &mut guard);
        if let Err(error) = &followed {
            kept(&state)?;
            if !troubled {
                report(error);
            }
        }
        troubled = followed.is_err();
    }
}

/// Changes whenever the saved rules do: they are replaced by rename.
fn saved_version(state: &PrivateDir) -> Option<(u64, i64, i64)> {
    let file = state.path().join(FILE).metadata().ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec()))
}

fn report(error: &InterceptError) {
    tracing::error!(%error, "problem with the kernel's rules; retrying every second");
}

/// Sets the guard table for the saved rules, and restores the main table if it is missing.
fn follow(state: &PrivateDir, guard: &mut Guard) -> Result<(), InterceptError> {
    // A node changes the table and the file while it has the lock.
    let _lock = lock(state)?;
    let Some(rules) = kept(state)? else {
        guard.fall();
        return Ok(());
    };
    let guarded = guard.stand_behind(&rules);
    if !is_loaded()? {
        // Not the configuration, which was read when this process started: a node may have loosened the rules since.
        put(&rules)?;
        tracing::error!(
            "another program removed the table `inet {TABLE}`; it was restored. To remove it, use `wiretight down`"
        );
    }
    guarded
}

fn load_locked(state: &PrivateDir, config: Option<&Config>) -> Result<bool, InterceptError> {
    let lost = match kept(state) {
        Ok(Some(saved)) => return load_saved(state, config, &saved),
        Ok(None) if is_down(state) => return Err(OperatorError::TakenDown.into()),
        Ok(None) => format!("{} does not exist. `wiretight run` writes it.", file(state)),
        Err(error) => error.to_string(),
    };
    let what = match load_configured(config)? {
        true => {
            "Until then, the rules of the configuration file are in force, which do not include the services of the mesh."
        }
        false => "If no rules are in force, plaintext may leave this machine.",
    };
    Err(InterceptError::Own(format!("{lost} {what}")))
}

fn load_saved(
    state: &PrivateDir,
    config: Option<&Config>,
    saved: &Rules,
) -> Result<bool, InterceptError> {
    // If the table is there, this is not the boot, and a node may have changed the rules: the saved ones apply.
    let config = config.filter(|_| !is_loaded().unwrap_or(false));
    let wanted = config.and_then(|config| stricter(config, saved)).filter(|wanted| wanted != saved);
    let loaded = wanted.and_then(|wanted| Some((put_table(&wanted).ok()?, wanted)));
    let Some((changed, rules)) = loaded else { return put(saved) };
    // It may fail: the next boot compares them again.
    let _ = keep(state, &rules);
    Ok(put_routes(&rules)? || changed)
}

fn is_loaded() -> Result<bool, InterceptError> {
    Ok(nft::tables(TABLE)?.iter().any(|name| name == TABLE))
}

/// The stricter of configured and saved rules, in each respect, as at the start of a node that does not know the mesh yet.
fn stricter(config: &Config, saved: &Rules) -> Option<Rules> {
    let mut configured = config.rules(MARK)?;
    if config.intercept.as_ref().is_some_and(|intercept| intercept.resolvers.is_none()) {
        // /etc/resolv.conf may be written later in the boot.
        configured.resolvers.clone_from(&saved.resolvers);
    }
    let rules = configured.no_looser_than(saved);
    rules.check().is_ok().then_some(rules)
}

/// Returns whether anything had to be changed; as do the next two.
fn put(rules: &Rules) -> Result<bool, InterceptError> {
    let changed = put_table(rules)?;
    Ok(put_routes(rules)? || changed)
}

fn put_table(rules: &Rules) -> Result<bool, InterceptError> {
    let there = Table::adopt(rules)?.is_some();
    if !there {
        Table::default().apply(rules)?;
    }
    Ok(!there)
}

fn put_routes(rules: &Rules) -> Result<bool, InterceptError> {
    let routed = routes::are(&rules.transparent)?;
    if !routed {
        routes::put(&rules.transparent)?;
    }
    Ok(!routed)
}

/// Loads what the configuration alone drops, unless rules are in force. Returns whether it did.
fn load_configured(config: Option<&Config>) -> Result<bool, InterceptError> {
    let configured = config.and_then(|config| config.rules(MARK)).filter(Rules::drops);
    let Some(configured) = configured else { return Ok(false) };
    if is_loaded()? {
        return Ok(false);
    }
    Table::default().apply(&configured.only_stopping())?;
    Ok(true)
}
