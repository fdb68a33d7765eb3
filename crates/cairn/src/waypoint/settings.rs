//! What the variables say besides who the node is. A value that cannot be used is warned about and its
//! default taken, unless the default could let something through.

use super::environment::Environment;
use super::node::Node;
use super::paths::Paths;
use super::ports::{Ports, PortsError};
use crate::load::LoadSettings;
use cairn_identity::ca::{self, KeyKind};
use cairn_identity::istiod::{OverrideError, Overrides};
use cairn_identity::{SpiffeError, SpiffeId};
use cairn_router::spec::duration;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Most worker threads.
const MAX_WORKERS: usize = 512;
/// Part of the memory limit above which new tunnels are refused, in percent.
const MEMORY_PERCENT: u64 = 85;

/// The settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who we are to peers.
    pub id: SpiffeId,
    /// The mesh's CA.
    pub ca: Ca,
    /// The file with the roots that prove istiod.
    pub istiod_roots: PathBuf,
    /// Addresses instead of DNS (`CAIRN_RESOLVE`).
    pub resolve: Overrides,
    /// Where to listen (`CAIRN_PORTS`).
    pub ports: Ports,
    /// How the process ends.
    pub drain: DrainSettings,
    /// Worker threads.
    pub workers: usize,
    /// Accepted configuration is kept for the next start (`CAIRN_WARM_START`).
    pub warm_start: bool,
    /// Workloads are asked for one by one (`CAIRN_WORKLOADS=on-demand`) instead of all of the mesh.
    pub workloads_on_demand: bool,
    /// A tunnel's end may be anybody of the trust domain (`CAIRN_ENDPOINT_IDENTITY=trust-domain`).
    pub any_of_trust_domain: bool,
    /// Endpoints may be on loopback (`CAIRN_LOOPBACK_ENDPOINTS=on`), where the administration pages are.
    pub loopback_endpoints: bool,
    /// Part of the memory limit above which new tunnels are refused, in percent; 100 or more: never.
    pub memory_percent: u64,
    /// Bytes that the pod may use, where kubelet says so (`GOMEMLIMIT`).
    pub memory_limit: Option<u64>,
    /// What the pod can do, for the autoscaler (`CAIRN_BANDWIDTH`, `CAIRN_CAPACITY`).
    pub load: LoadSettings,
    /// Most series of Istio's metrics (`CAIRN_METRIC_SERIES`).
    pub metric_series: usize,
    /// A series leaves that nothing happened to for so long (`CAIRN_METRIC_IDLE`).
    pub metric_idle: Duration,
    /// What was not understood, in words.
    pub warnings: Vec<String>,
}

/// The mesh's CA, and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ca {
    /// `host:port`.
    pub address: String,
    /// The file with the roots that prove it.
    pub roots: PathBuf,
    /// How long a certificate should be valid.
    pub ttl: Duration,
    /// Part of a certificate's life that is left when it is renewed, 0 to 1.
    pub grace_ratio: f64,
    /// Kind of key.
    pub key: KeyKind,
    /// Kubernetes' signer.
    pub signer: Option<String>,
}

/// How the process ends (Istio's agent: the variables of the same names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// Tunnels are accepted for so long after the signal: until everybody has heard that we go
    /// (`MINIMUM_DRAIN_DURATION`).
    pub accept: Duration,
    /// Then what is in flight may take so long until it is cut; `None`: until it is over
    /// (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`), which kubelet ends at `terminationGracePeriodSeconds`.
    pub finish: Option<Duration>,
}

/// Why the process does not start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The identity cannot be made.
    #[error("TRUST_DOMAIN, POD_NAMESPACE and SERVICE_ACCOUNT make no identity: {0}")]
    Identity(#[from] SpiffeError),
    /// `CAIRN_PORTS`.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// `CAIRN_RESOLVE`.
    #[error("CAIRN_RESOLVE: {0}")]
    Resolve(#[from] OverrideError),
}

/// Variables with the defaults of `proxyMetadata`, and what of them was not understood.
struct Reader<'a> {
    environment: &'a Environment,
    node: &'a Node,
    warnings: Vec<String>,
}

impl Settings {
    /// What the pod's variables amount to.
    ///
    /// # Errors
    /// [`SettingsError`] where there is no safe default.
    pub fn from(
        environment: &Environment,
        node: &Node,
        paths: &Paths,
    ) -> Result<Settings, SettingsError> {
        let mut reader = Reader { environment, node, warnings: Vec::new() };
        let trust_domain = reader.var("TRUST_DOMAIN").unwrap_or("cluster.local");
        let id = SpiffeId::new(trust_domain, &node.namespace, &node.service_account)?;
        let provider = reader.var("PILOT_CERT_PROVIDER").unwrap_or("istiod");
        let roots = |variable| match reader.var(variable) {
            Some(path) => paths.at(path),
            None => paths.istiod_roots(provider),
        };
        let (istiod_roots, ca_roots) = (roots("XDS_ROOT_CA"), roots("CA_ROOT_CA"));
        let address = reader.var("CA_ADDR").unwrap_or(&node.discovery_address).to_owned();
        let signer = reader.var("ISTIO_META_CERT_SIGNER").map(str::to_owned);
        let resolve = Overrides::parse(reader.var("CAIRN_RESOLVE").unwrap_or_default())?;
        let ports = Ports::parse(reader.var("CAIRN_PORTS").unwrap_or_default())?;
        let memory_limit = reader.var("GOMEMLIMIT").and_then(|bytes| bytes.parse().ok());
        let ca = Ca {
            address,
            roots: ca_roots,
            ttl: reader.duration("SECRET_TTL").unwrap_or(ca::DEFAULT_TTL),
            grace_ratio: reader.ratio("SECRET_GRACE_PERIOD_RATIO", ca::DEFAULT_GRACE_RATIO),
            key: reader.key(),
            signer,
        };
        let drain = reader.drain();
        let workers = reader.workers();
        let memory_percent =
            reader.number("CAIRN_MEMORY_PERCENT", "a number of percent").unwrap_or(MEMORY_PERCENT);
        let load = reader.load();
        let telemetry = cairn_telemetry::Settings::default();
        let metric_series = reader
            .number("CAIRN_METRIC_SERIES", "a number of series")
            .unwrap_or(telemetry.series_limit);
        let metric_idle = reader.duration("CAIRN_METRIC_IDLE").unwrap_or(telemetry.series_idle);
        Ok(Settings {
            id,
            ca,
            istiod_roots,
            resolve,
            ports,
            drain,
            workers,
            warm_start: !reader.chosen("CAIRN_WARM_START", "off", "on"),
            workloads_on_demand: reader.chosen("CAIRN_WORKLOADS", "on-demand", "all"),
            any_of_trust_domain: reader.chosen(
                "CAIRN_ENDPOINT_IDENTITY",
                "trust-domain",
                "workload",
            ),
            loopback_endpoints: reader.chosen("CAIRN_LOOPBACK_ENDPOINTS", "on", "off"),
            memory_percent,
            memory_limit,
            load,
            metric_series,
            metric_idle,
            warnings: reader.warnings,
        })
    }
}

impl<'a> Reader<'a> {
    fn var(&self, name: &str) -> Option<&'a str> {
        self.environment.var(name).or_else(|| {
            let mut defaults = self.node.proxy_config.variables();
            defaults
                .find(|(known, value)| *known == name && !value.is_empty())
                .map(|(_, value)| value)
        })
    }

    fn odd(&mut self, name: &str, value: &str, what: &str) {
        self.warnings.push(format!("{name}={value} has no effect: it must be {what}"));
    }

    fn duration(&mut self, name: &str) -> Option<Duration> {
        let value = self.var(name)?;
        let parsed = duration::parse(value).ok();
        if parsed.is_none() {
            self.odd(name, value, "a duration such as 5s or 1m30s");
        }
        parsed
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, what: &str) -> Option<T> {
        let value = self.var(name)?;
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.odd(name, value, what);
        }
        parsed
    }

    fn load(&mut self) -> LoadSettings {
        let mut load = LoadSettings::default();
        let capacity = self.var("CAIRN_CAPACITY").map(|list| load.put(list));
        if let Some(Err(error)) = capacity {
            self.warnings.push(format!("CAIRN_CAPACITY has no effect from here on: {error}"));
        }
        load.config.bandwidth =
            self.number("CAIRN_BANDWIDTH", "eci, or a rate such as 100Mbit or 1.5Gbit");
        load
    }

    fn ratio(&mut self, name: &str, default: f64) -> f64 {
        match self.number::<f64>(name, "a number from 0 to 1") {
            Some(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            Some(ratio) => {
                self.odd(name, &ratio.to_string(), "a number from 0 to 1");
                default
            }
            None => default,
        }
    }

    /// `true` for `one`, `false` for `other` and where nothing is set.
    fn chosen(&mut self, name: &str, one: &str, other: &str) -> bool {
        match self.var(name) {
            Some(value) if value == one => true,
            Some(value) if value != other => {
                self.odd(name, value, &format!("{one} or {other}"));
                false
            }
            _ => false,
        }
    }

    fn key(&mut self) -> KeyKind {
        let kind = KeyKind::from_env(
            self.var("ECC_SIGNATURE_ALGORITHM"),
            self.var("ECC_CURVE"),
            self.var("WORKLOAD_RSA_KEY_SIZE"),
        );
        let reason = match kind {
            Ok(KeyKind::Rsa2048) => {
                "WORKLOAD_RSA_KEY_SIZE has no effect: RSA keys cannot be made here".to_owned()
            }
            Ok(kind) => return kind,
            Err(error) => error.to_string(),
        };
        self.warnings.push(format!("{reason}; the key is ECDSA P-256, which istiod signs as well"));
        KeyKind::EcdsaP256
    }

    /// Istio's agent sleeps for a fixed time, 5 s unless told otherwise, and then cuts. Here a drain ends
    /// as soon as nothing is in flight, so it may last longer where nobody said how long: in total
    /// 25 s of the 30 s that kubelet gives.
    fn drain(&mut self) -> DrainSettings {
        const ACCEPT: Duration = Duration::from_secs(5);
        const TOTAL: Duration = Duration::from_secs(25);
        let seconds: Option<u64> =
            self.number("TERMINATION_DRAIN_DURATION_SECONDS", "a number of seconds");
        let total = seconds
            .map(Duration::from_secs)
            .or_else(|| self.node.proxy_config.termination_drain_duration())
            .unwrap_or(TOTAL);
        let accept = self.duration("MINIMUM_DRAIN_DURATION").unwrap_or(ACCEPT);
        let until_over = match self.var("EXIT_ON_ZERO_ACTIVE_CONNECTIONS") {
            Some(value) if value.eq_ignore_ascii_case("true") || value == "1" => true,
            Some(value) if !value.eq_ignore_ascii_case("false") && value != "0" => {
                self.odd("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", value, "true or false");
                false
            }
            _ => false,
        };
        if until_over {
            return DrainSettings { accept, finish: None };
        }
        // Whatever the minimum is, half of the total is for what is in flight.
        let accept = accept.min(total / 2);
        DrainSettings { accept, finish: Some(total - accept) }
    }

    /// What the arguments or `ProxyConfig` say, where 0 is one for each CPU; else the pod's CPU limit, which
    /// kubelet rounds up, and which is the node's size where there is none.
    fn workers(&mut self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let told = self.environment.args.concurrency.or(self.node.proxy_config.concurrency());
        let limit: Option<usize> = self.number("ISTIO_CPU_LIMIT", "a number of CPUs");
        let workers = match (told, limit) {
            (Some(0), _) | (None, None) => cpus,
            (Some(told), _) => usize::from(told),
            (None, Some(limit)) => limit.min(cpus),
        };
        workers.clamp(1, MAX_WORKERS)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::waypoint::node::GATEWAY_NAME;

    fn settings(vars: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let pod = [
            ("POD_NAME", "waypoint-1"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "10.0.0.1"),
            ("SERVICE_ACCOUNT", "waypoint"),
        ];
        let vars = pod.iter().chain(vars).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let environment = Environment {
            vars: vars.collect(),
            labels: Some(format!("{GATEWAY_NAME}=\"waypoint\"\n")),
            ..Environment::default()
        };
        let node = Node::from(&environment).unwrap();
        Settings::from(&environment, &node, &Paths::below("/"))
    }

    #[test]
    fn a_rendered_pod_gets_defaults() {
        let settings = settings(&[
            ("TRUST_DOMAIN", "td"),
            ("CA_ADDR", "istiod-canary.istio-system.svc:15012"),
            ("GOMEMLIMIT", "1073741824"),
        ])
        .unwrap();
        assert_eq!(settings.id.as_str(), "spiffe://td/ns/shop/sa/waypoint");
        assert_eq!(settings.ca.address, "istiod-canary.istio-system.svc:15012");
        assert_eq!(settings.ca.roots, PathBuf::from("/var/run/secrets/istio/root-cert.pem"));
        assert_eq!(settings.ca.ttl, Duration::from_secs(24 * 3600));
        assert_eq!((settings.ca.key, settings.ca.grace_ratio), (KeyKind::EcdsaP256, 0.5));
        assert!(settings.warm_start && !settings.workloads_on_demand);
        assert!(!settings.any_of_trust_domain && !settings.loopback_endpoints);
        assert_eq!(settings.memory_limit, Some(1 << 30));
        assert_eq!(settings.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_drain_fits_into_what_was_said() {
        let drain = |vars: &[(&str, &str)]| settings(vars).unwrap().drain;
        let seconds = Duration::from_secs;
        let expect = |accept, finish: Option<u64>| DrainSettings {
            accept: seconds(accept),
            finish: finish.map(seconds),
        };
        assert_eq!(drain(&[]), expect(5, Some(20)));
        assert_eq!(drain(&[("TERMINATION_DRAIN_DURATION_SECONDS", "60")]), expect(5, Some(55)));
        assert_eq!(drain(&[("TERMINATION_DRAIN_DURATION_SECONDS", "4")]), expect(2, Some(2)));
        assert_eq!(drain(&[("TERMINATION_DRAIN_DURATION_SECONDS", "0")]), expect(0, Some(0)));
        assert_eq!(drain(&[("MINIMUM_DRAIN_DURATION", "0s")]), expect(0, Some(25)));
        assert_eq!(drain(&[("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")]), expect(5, None));
        let config = r#"{"terminationDrainDuration": "10s", "proxyMetadata": {"MINIMUM_DRAIN_DURATION": "1s"}}"#;
        assert_eq!(drain(&[("PROXY_CONFIG", config)]), expect(1, Some(9)));
    }

    #[test]
    fn what_is_odd_is_warned_about() {
        let settings = settings(&[
            ("MINIMUM_DRAIN_DURATION", "soon"),
            ("TERMINATION_DRAIN_DURATION_SECONDS", "5s"),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "maybe"),
            ("CAIRN_WARM_START", "no"),
            ("SECRET_GRACE_PERIOD_RATIO", "7"),
            ("WORKLOAD_RSA_KEY_SIZE", "2048"),
            ("ISTIO_CPU_LIMIT", "many"),
            ("CAIRN_BANDWIDTH", "fast"),
            ("CAIRN_CAPACITY", "in-flight=7,cpus=2"),
        ])
        .unwrap();
        assert_eq!(settings.load.config.in_flight, Some(7.0));
        assert_eq!(settings.load.config.bandwidth, None);
        assert_eq!(settings.warnings.len(), 9, "{:#?}", settings.warnings);
        assert_eq!(settings.drain.accept, Duration::from_secs(5));
        assert!(settings.warm_start);
        assert_eq!(settings.ca.key, KeyKind::EcdsaP256);
    }

    #[test]
    fn what_has_no_safe_default_is_refused() {
        for (name, value) in [("CAIRN_PORTS", "x"), ("CAIRN_RESOLVE", "x"), ("TRUST_DOMAIN", "a/b")]
        {
            let error = settings(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn workers_follow_what_was_said() {
        let workers = |vars: &[(&str, &str)]| settings(vars).unwrap().workers;
        assert_eq!(workers(&[("ISTIO_CPU_LIMIT", "1")]), 1);
        assert_eq!(workers(&[("PROXY_CONFIG", "concurrency: 7"), ("ISTIO_CPU_LIMIT", "1")]), 7);
        let cpus = std::thread::available_parallelism().unwrap().get();
        assert_eq!(workers(&[]), cpus);
        assert_eq!(workers(&[("PROXY_CONFIG", "concurrency: 0")]), cpus);
    }

    #[test]
    fn other_roots_can_be_named() {
        let roots = |vars: &[(&str, &str)]| settings(vars).unwrap().istiod_roots;
        let kubernetes = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
        assert_eq!(roots(&[("PILOT_CERT_PROVIDER", "kubernetes")]), PathBuf::from(kubernetes));
        assert_eq!(roots(&[("XDS_ROOT_CA", "/etc/x.pem")]), PathBuf::from("/etc/x.pem"));
    }
}
