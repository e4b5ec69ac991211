//! The gRPC service: messages in, operations, messages out.
//!
//! Owns the translation between containerd's messages and [`Snapshotter`], which it calls on threads that may block.
//! Decides nothing.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use crate::error::{Error, Result};
use crate::filter::Filters;
use crate::info::{Info, Kind, Labels};
use crate::metrics::Metrics;
use crate::mounts::Mount;
use crate::proto::snapshots as api;
use crate::proto::snapshots::snapshots_server::Snapshots;
use crate::proto::types;
use crate::snapshotter::Snapshotter;

/// How many snapshots one message of a listing holds.
const LIST_BATCH: usize = 100;

type ApiResult<T> = std::result::Result<Response<T>, Status>;

/// The service on one snapshotter.
#[derive(Debug, Clone)]
pub struct Service {
    snapshotter: Arc<Snapshotter>,
    metrics: Arc<Metrics>,
}

impl Service {
    /// Serves `snapshotter` and counts in `metrics`.
    pub fn new(snapshotter: Arc<Snapshotter>, metrics: Arc<Metrics>) -> Self {
        Self { snapshotter, metrics }
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Snapshotter) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let started = Instant::now();
        let snapshotter = Arc::clone(&self.snapshotter);
        let result = match tokio::task::spawn_blocking(move || work(&snapshotter)).await {
            Ok(result) => result.map_err(|error| {
                tracing::debug!("{operation}: {error}");
                Status::from(error)
            }),
            Err(panic) => {
                tracing::error!("{operation}: {panic}");
                Err(Status::internal(format!("{operation} failed in the snapshotter; see its log")))
            }
        };
        let code = result.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
        self.metrics.observe(operation, code, started.elapsed());
        result
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> ApiResult<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mount = self.run("prepare", move |s| s.prepare(&key, given(&parent), labels)).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: vec![mount.into()] }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> ApiResult<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mount = self.run("view", move |s| s.view(&key, given(&parent), labels)).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: vec![mount.into()] }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> ApiResult<api::MountsResponse> {
        let key = request.into_inner().key;
        let mount = self.run("mounts", move |s| s.mount(&key)).await?;
        Ok(Response::new(api::MountsResponse { mounts: vec![mount.into()] }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> ApiResult<()> {
        let api::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        self.run("commit", move |s| s.commit(&name, &key, given(&parent), labels)).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> ApiResult<()> {
        let key = request.into_inner().key;
        self.run("remove", move |s| s.remove(&key)).await?;
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> ApiResult<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let info = self.run("stat", move |s| s.stat(&key)).await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info.into()) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> ApiResult<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let paths = update_mask.unwrap_or_default().paths;
        let update = move |s: &Snapshotter| {
            let info =
                info.ok_or_else(|| Error::InvalidArgument("no snapshot to update was given".into()))?;
            s.update(&info.name, &info.labels, &paths)
        };
        let info = self.run("update", update).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info.into()) }))
    }

    type ListStream =
        tokio_stream::Iter<std::vec::IntoIter<std::result::Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> ApiResult<Self::ListStream> {
        let filters = request.into_inner().filters;
        let found = self.run("list", move |s| s.list(&Filters::parse(&filters)?)).await?;
        let batches: Vec<_> = found
            .chunks(LIST_BATCH)
            .map(|batch| {
                let info = batch.iter().cloned().map(Into::into).collect();
                Ok(api::ListSnapshotsResponse { info })
            })
            .collect();
        Ok(Response::new(tokio_stream::iter(batches)))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> ApiResult<api::UsageResponse> {
        let key = request.into_inner().key;
        let usage = self.run("usage", move |s| s.usage(&key)).await?;
        Ok(Response::new(api::UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> ApiResult<()> {
        self.run("cleanup", Snapshotter::cleanup).await?;
        Ok(Response::new(()))
    }
}

/// protobuf has no absent text: an empty one means none.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl From<Mount> for types::Mount {
    fn from(mount: Mount) -> Self {
        Self { r#type: mount.fstype, source: mount.source, target: String::new(), options: mount.options }
    }
}

impl From<Kind> for api::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::View => Self::View,
            Kind::Active => Self::Active,
            Kind::Committed => Self::Committed,
        }
    }
}

impl From<Info> for api::Info {
    fn from(Info { name, record }: Info) -> Self {
        let labels: Labels = record.labels;
        Self {
            name,
            parent: record.parent.unwrap_or_default(),
            kind: api::Kind::from(record.kind).into(),
            created_at: Some(record.created.into()),
            updated_at: Some(record.updated.into()),
            labels,
        }
    }
}
