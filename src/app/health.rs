//! gRPC's own services beside the one that weir is for: health, and reflection.

use std::convert::Infallible;

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Error;
use crate::proto::{DESCRIPTOR_SET, SERVICE_NAME};
use crate::rules::Watch;

/// Names under which health is asked for: the server as a whole, the service, and what the reference calls itself.
const NAMES: [&str; 3] = ["", SERVICE_NAME, "ratelimit"];

/// Adds the description of all services, for clients that have no files of it.
pub(super) fn reflection(routes: Routes) -> Result<Routes, Error> {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| Error::Start(format!("reflection: {error}"));
    let routes = routes.add_service(described().build_v1().map_err(failed)?);
    Ok(routes.add_service(described().build_v1alpha().map_err(failed)?))
}

/// Says that it is serving as soon as rules are in force, if that has not been `told`.
pub(super) async fn keep(watch: &Watch, health: &HealthReporter, mut told: bool) -> Infallible {
    let mut changes = watch.changes();
    loop {
        // Only what has changed, since those who watch are told again each time.
        if watch.is_loaded() != told {
            told = !told;
            set(health, told).await;
        }
        if changes.changed().await.is_err() {
            // Cannot be: the watch is there.
            std::future::pending::<()>().await;
        }
    }
}

/// Says whether it is serving.
pub(super) async fn set(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in NAMES {
        health.set_service_status(name, status).await;
    }
}
