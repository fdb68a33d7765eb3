//! The explanation, as JSON has it and as people read it.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};

/// What becomes of a request or byte stream, and why.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// What CONNECT names.
    pub target: String,
    /// Who asks.
    pub from: Option<String>,
    /// Where the client is.
    pub source_ip: String,
    /// What the target is.
    pub destination: Option<DestinationFound>,
    /// Policies of the connection, in their order, up to the one that refuses.
    pub connection: Vec<Step>,
    /// Which chain its bytes take: `http` or `tcp`.
    pub chain: Option<String>,
    /// The request as filters and routes see it first.
    pub request: Option<String>,
    /// Steps before routing, in their order, up to the one that refuses.
    pub filters: Vec<Step>,
    /// Where the request is routed.
    pub route: Option<Routed>,
    /// Where it can go.
    pub clusters: Vec<ClusterFound>,
    /// What becomes of it.
    pub outcome: String,
    /// An endpoint, a redirect or a fixed response answers; nothing refuses it.
    pub answered: bool,
    /// What else may matter.
    pub notes: Vec<String>,
}

/// What the target is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DestinationFound {
    /// Its name.
    pub name: String,
    /// Namespace of its owner.
    pub namespace: String,
    /// The address or host by which it was found.
    pub matched: String,
    /// Why it, or a chain of it, cannot be honoured.
    pub broken: Option<String>,
}

/// A filter, and what it says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Step {
    /// What it is.
    pub filter: String,
    /// `allowed`, `denied`, `logged` or `applied`.
    pub verdict: String,
    /// The policy that decided.
    pub policy: Option<String>,
    /// What it looked at before, and what it changed.
    pub why: Vec<String>,
}

/// The route.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Routed {
    /// The virtual host, and the domain that names it.
    pub virtual_host: Option<String>,
    /// Name and number of the route.
    pub route: Option<String>,
    /// Routes that stand before it, and why they do not match.
    pub passed_over: Vec<String>,
    /// What it does.
    pub action: Option<String>,
    /// What it does besides.
    pub details: Vec<String>,
    /// The request as it is forwarded.
    pub forwarded_as: Option<String>,
}

/// A cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ClusterFound {
    /// Its name.
    pub name: String,
    /// Share of the requests in percent.
    pub share: f64,
    /// How it is used, or why it cannot be.
    pub what: String,
    /// How many endpoints get requests.
    pub usable: usize,
    /// How many there are.
    pub total: usize,
    /// The first of them.
    pub endpoints: Vec<EndpointFound>,
}

/// An endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EndpointFound {
    /// Where.
    pub address: String,
    /// It gets requests.
    pub usable: bool,
    /// Why, or why not.
    pub why: String,
    /// How it is reached, and whom it has to be.
    pub via: String,
    /// Who is there.
    pub workload: Option<String>,
    /// Requests in flight, ever begun and failed.
    pub requests: [u64; 3],
}

impl Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.from.as_deref().unwrap_or("a client without identity");
        writeln!(f, "CONNECT {} from {from} at {}", self.target, self.source_ip)?;
        match &self.destination {
            None => writeln!(f, "destination: none")?,
            Some(found) => {
                writeln!(f, "destination: {} (namespace {})", found.name, found.namespace)?;
                writeln!(f, "  by {}", found.matched)?;
                if let Some(reason) = &found.broken {
                    writeln!(f, "  broken: {reason}")?;
                }
            }
        }
        steps(f, "connection", &self.connection)?;
        if let Some(chain) = &self.chain {
            writeln!(f, "chain: {chain}")?;
        }
        if let Some(request) = &self.request {
            writeln!(f, "request: {request}")?;
        }
        steps(f, "filter", &self.filters)?;
        if let Some(route) = &self.route {
            route.fmt(f)?;
        }
        for cluster in &self.clusters {
            cluster.fmt(f)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "=> {}", self.outcome)
    }
}

fn steps(f: &mut fmt::Formatter<'_>, what: &str, steps: &[Step]) -> fmt::Result {
    for (index, step) in steps.iter().enumerate() {
        write!(f, "{what} {}: {}: {}", index + 1, step.filter, step.verdict)?;
        match &step.policy {
            Some(policy) => writeln!(f, " by {policy}")?,
            None => writeln!(f)?,
        }
        for why in &step.why {
            writeln!(f, "  {why}")?;
        }
    }
    Ok(())
}

impl Display for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.virtual_host {
            Some(host) => writeln!(f, "virtual host: {host}")?,
            None => writeln!(f, "virtual host: none")?,
        }
        for route in &self.passed_over {
            writeln!(f, "  passed over: {route}")?;
        }
        match &self.route {
            Some(route) => writeln!(f, "route: {route}")?,
            None => writeln!(f, "route: none")?,
        }
        if let Some(action) = &self.action {
            writeln!(f, "  {action}")?;
        }
        for detail in &self.details {
            writeln!(f, "  {detail}")?;
        }
        if let Some(request) = &self.forwarded_as {
            writeln!(f, "  forwarded as {request}")?;
        }
        Ok(())
    }
}

impl Display for ClusterFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster: {}", self.name)?;
        if self.share < 100.0 {
            write!(f, " ({}% of the requests)", (self.share * 100.0).round() / 100.0)?;
        }
        writeln!(f, ": {}", self.what)?;
        for endpoint in &self.endpoints {
            let mark = if endpoint.usable { '+' } else { '-' };
            let [active, total, failed] = endpoint.requests;
            writeln!(f, "  {mark} {} {}: {}", endpoint.address, endpoint.via, endpoint.why)?;
            if let Some(workload) = &endpoint.workload {
                writeln!(f, "      {workload}")?;
            }
            if total > 0 {
                writeln!(f, "      {active} requests in flight, {total} begun, {failed} failed")?;
            }
        }
        if self.total > self.endpoints.len() {
            writeln!(f, "  and {} more endpoints", self.total - self.endpoints.len())?;
        }
        Ok(())
    }
}
