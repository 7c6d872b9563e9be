//! Who sums up: the holder of a `coordination.k8s.io` Lease.
//!
//! Nobody's clock is compared with another's: a lease is over when whoever looks at it hasn't seen it change for as long
//! as it lasts. Every write carries the version that was read, so of two who take it at once one is told no (409).
//! A holder that couldn't renew stops before anybody else may begin.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// The object's name; deploy/ makes it, so that no agent needs to create any.
pub const NAME: &str = "bulkhead-status";
/// How long it holds without being renewed.
pub const LASTS: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(10);
/// How long after the last renewal a holder stops, whatever the API server says later.
const STOP: Duration = Duration::from_secs(20);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// What came of a try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// It is ours for now.
    Ours,
    /// Somebody else's, or nobody can tell.
    NotOurs,
}

/// The lease, as one agent sees it.
pub struct Seat {
    api: Api<Lease>,
    me: String,
    /// Which version was last seen, and since when.
    seen: Option<(String, Instant)>,
    /// When it was last renewed by us.
    renewed: Option<Instant>,
    /// What was last complained about.
    complaint: String,
}

impl Seat {
    /// In the agent's own namespace.
    pub fn new(client: &Client, me: &str) -> Self {
        let api = Api::default_namespaced(client.clone());
        Self { api, me: me.to_owned(), seen: None, renewed: None, complaint: String::new() }
    }

    /// Takes it, or renews it when that is due; cheap when it isn't.
    pub async fn hold(&mut self) -> Hold {
        if self.renewed.is_some_and(|at| at.elapsed() < RENEW) {
            return Hold::Ours;
        }
        // The time of asking counts: nobody may think that it lasts longer than others do.
        let asked = Instant::now();
        match timeout(REQUEST, self.ask()).await {
            Ok(Ok(true)) => {
                self.renewed = Some(asked);
                self.complaint.clear();
                return Hold::Ours;
            }
            Ok(Ok(false)) => {
                self.renewed = None;
                return Hold::NotOurs;
            }
            Ok(Err(e)) => self.complain(e.to_string()),
            Err(_) => self.complain(format!("no answer within {} s", REQUEST.as_secs())),
        }
        if self.renewed.is_some_and(|at| at.elapsed() < STOP) { Hold::Ours } else { Hold::NotOurs }
    }

    async fn ask(&mut self) -> kube::Result<bool> {
        let mut lease = self.api.get(NAME).await?;
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        if self.seen.as_ref().is_none_or(|(last, _)| *last != version) {
            self.seen = Some((version, now));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
        if !may_take(&lease, &self.me, unchanged) {
            return Ok(false);
        }
        let spec = lease.spec.get_or_insert_default();
        let time = MicroTime(Timestamp::now());
        if spec.holder_identity.as_deref() != Some(&self.me) {
            spec.acquire_time = Some(time.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(LASTS.as_secs()).ok();
        spec.renew_time = Some(time);
        match self.api.replace(NAME, &PostParams::default(), &lease).await {
            Ok(written) => {
                self.seen = written.metadata.resource_version.map(|v| (v, now));
                Ok(true)
            }
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Lets go of it, so that the next needn't wait. Whoever can't be told waits.
    pub async fn release(&mut self) {
        if self.renewed.take().is_none() {
            return;
        }
        let free = async {
            let mut lease = self.api.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.me) {
                spec.holder_identity = Some(String::new());
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            kube::Result::<()>::Ok(())
        };
        if let Ok(Err(e)) = timeout(Duration::from_secs(1), free).await {
            tracing::debug!("the lease {NAME} couldn't be given back: {e}");
        }
    }

    fn complain(&mut self, why: String) {
        if self.complaint != why {
            tracing::warn!("the lease {NAME} can't be had, so this agent doesn't write the status of policies: {why}");
            self.complaint = why;
        }
    }
}

/// Whether it is ours, nobody's, or over.
fn may_take(lease: &Lease, me: &str, unchanged: Duration) -> bool {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let lasts = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let lasts = lasts.map_or(LASTS, Duration::from_secs).max(LASTS);
    holder.is_empty() || holder == me || unchanged >= lasts
}

#[cfg(test)]
mod tests;
