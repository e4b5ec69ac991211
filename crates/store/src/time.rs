//! Timestamps as images and containers carry them: RFC 3339 in UTC.

use crate::tar::Time;

/// A time as RFC 3339; times that no calendar holds become the epoch.
pub(crate) fn rfc3339(t: Time) -> String {
    let ts = jiff::Timestamp::new(t.secs, i32::try_from(t.nanos).unwrap_or(0))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    ts.to_string()
}

/// Now.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// What an image made from files is dated: SOURCE_DATE_EPOCH where it is set, else the time of the newest
/// file, so that the same content gives the same image whenever it is made.
pub(crate) fn dated(newest: Option<Time>) -> String {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse().ok());
    let t = set.map(|secs| Time { secs, nanos: 0 }).or(newest).unwrap_or_default();
    let now = jiff::Timestamp::now().as_second();
    rfc3339(Time { secs: t.secs.min(now), ..t })
}
