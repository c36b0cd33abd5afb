//! The access log: one structured line for each session.

use wiretight_keys::Name;

use super::live::{Live, Side, Transferred, cipher_name, group_name, protocol_name};
use super::session::End;

/// Logs a session that has ended. `plain` is the address on the plaintext side.
pub(crate) fn access(
    side: Side,
    service: &Name,
    live: &Live,
    plain: &str,
    moved: &Transferred,
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
