//! What Prometheus can ask: operations by result, their time, snapshots by kind.
//!
//! Owns the registry and its HTTP page. The address is a Unix socket or a loopback one: the page needs no password, so
//! nobody from outside gets at it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Code;

use crate::error::Result;
use crate::filter::Filters;
use crate::info::Kind;
use crate::snapshotter::Snapshotter;

const PATH: &str = "/metrics";
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds of the time histogram in seconds: a read takes less than the first, an unpacked layer's commit the last.
const SECONDS: [f64; 9] = [0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Where the page is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("{path:?} is not an absolute path"))
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor unix:PATH"))?;
        if !address.ip().is_loopback() {
            return Err(format!("{address} is not a loopback address: anybody could read the metrics"));
        }
        Ok(Self::Tcp(address))
    }
}

type OperationLabels = [(&'static str, &'static str); 2];
type KindLabels = [(&'static str, &'static str); 1];

/// The metrics of one service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    operations: Family<OperationLabels, Counter>,
    seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
    snapshots: Family<KindLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let operations = Family::<OperationLabels, Counter>::default();
        let seconds = Family::<KindLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(SECONDS)
        });
        let snapshots = Family::<KindLabels, Gauge>::default();
        let mut registry = Registry::with_prefix("plyfs_snapshotter");
        registry.register("operations", "Operations by name and result", operations.clone());
        let help = "How long operations took";
        registry.register_with_unit("operation_duration", help, Unit::Seconds, seconds.clone());
        registry.register("snapshots", "Snapshots by kind", snapshots.clone());
        Self { registry, operations, seconds, snapshots }
    }
}

impl Metrics {
    /// Counts one operation.
    pub fn observe(&self, operation: &'static str, code: Code, took: Duration) {
        self.operations.get_or_create(&[("operation", operation), ("code", word(code))]).inc();
        self.seconds.get_or_create(&[("operation", operation)]).observe(took.as_secs_f64());
    }

    /// The page, with the snapshots counted now.
    pub fn page(&self, snapshotter: &Snapshotter) -> Result<String> {
        let all = snapshotter.list(&Filters::default())?;
        for kind in Kind::ALL {
            let count = all.iter().filter(|info| info.record.kind == kind).count();
            let gauge = self.snapshots.get_or_create(&[("kind", kind.word())]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)
            .map_err(|e| crate::Error::Serve { address: PATH.into(), message: e.to_string() })?;
        Ok(page)
    }
}

/// Answers the requests of one connection.
pub async fn answer(
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (metrics, snapshotter) = (Arc::clone(&metrics), Arc::clone(&snapshotter));
        async move { respond(&request, metrics, snapshotter).await }
    });
    let http = hyper::server::conn::http1::Builder::new();
    if let Err(e) = http.serve_connection(TokioIo::new(connection), service).await {
        tracing::debug!("metrics: {e}");
    }
}

async fn respond(
    request: &Request<Incoming>,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
) -> hyper::http::Result<Response<Full<Bytes>>> {
    let response = Response::builder();
    if request.uri().path() != PATH {
        return response.status(StatusCode::NOT_FOUND).body(Full::from(format!("see {PATH}\n")));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return response.status(StatusCode::METHOD_NOT_ALLOWED).body(Full::default());
    }
    match tokio::task::spawn_blocking(move || metrics.page(&snapshotter)).await {
        Ok(Ok(page)) => response.header("content-type", CONTENT_TYPE).body(Full::from(page)),
        Ok(Err(e)) => response.status(StatusCode::INTERNAL_SERVER_ERROR).body(Full::from(format!("{e}\n"))),
        Err(e) => response.status(StatusCode::INTERNAL_SERVER_ERROR).body(Full::from(format!("{e}\n"))),
    }
}

fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::AlreadyExists => "already_exists",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "failed_precondition",
        Code::InvalidArgument => "invalid_argument",
        Code::ResourceExhausted => "resource_exhausted",
        _ => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_taken() {
        let parse = |text: &str| text.parse::<MetricsAddress>();
        assert_eq!(parse("unix:/run/m.sock"), Ok(MetricsAddress::Unix("/run/m.sock".into())));
        assert_eq!(parse("unix:///run/m.sock"), Ok(MetricsAddress::Unix("/run/m.sock".into())));
        assert!(matches!(parse("127.0.0.1:9101"), Ok(MetricsAddress::Tcp(_))));
        assert!(matches!(parse("[::1]:9101"), Ok(MetricsAddress::Tcp(_))));
        for bad in ["0.0.0.0:9101", "192.0.2.1:1", "9101", "unix:rel", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
