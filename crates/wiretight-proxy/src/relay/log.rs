//! The access log: one structured line a session.

use wiretight_keys::Name;

use super::live::{Live, Moved, Side, cipher_name, group_name, protocol_name};
use super::session::End;

/// Logs a session that has ended. `plain` is the far end of the plain side.
pub(crate) fn access(
    side: Side,
    service: &Name,
    live: &Live,
    plain: &str,
    moved: &Moved,
    end: &End,
) {
    tracing::info!(
        target: "access",
        side = side.word(),
        %service,
        peer = %live.peer().id(),
        address = %live.addr(),
        plain,
        protocol = protocol_name(live.negotiated()),
        group = group_name(live.negotiated()),
        cipher = cipher_name(live.negotiated()),
        bytes_in = moved.received,
        bytes_out = moved.sent,
        ms = moved.ms,
        end = end.word(),
        detail = end.detail(),
    );
}
