//! The arguments that istiod's template gives its proxy (`pilot-agent proxy waypoint …`).
//!
//! They are Istio's, in the syntax of Go's `pflag`: `--flag value` and `--flag=value`. A release of
//! Istio may add some, and a pod that does not start is worse than a flag without effect: what is not
//! known is warned about and never ends the process.

use super::log_levels;

/// What `cairn proxy waypoint` was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `--domain`: DNS domain of the pod's namespace, such as `shop.svc.cluster.local`.
    pub domain: Option<String>,
    /// `--serviceCluster`: name of the node's cluster in Envoy's sense, such as `waypoint.shop`.
    pub service_cluster: Option<String>,
    /// `--concurrency`: worker threads; 0: one for each CPU.
    pub concurrency: Option<u16>,
    /// `--log_as_json`.
    pub log_as_json: bool,
    /// `--log_output_level`: Istio's scopes and levels.
    pub log_output_level: Option<String>,
    /// `--proxyLogLevel`: Envoy's level.
    pub proxy_log_level: Option<String>,
    /// `--proxyComponentLogLevel`: Envoy's components and levels.
    pub proxy_component_log_level: Option<String>,
    /// `--help` or `-h` is there.
    pub help: bool,
    /// What has no effect, in words; said once the log is there.
    pub ignored: Vec<String>,
}

/// Flags of Istio's agent that mean nothing here and take a value.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    ("outlierLogPath", "outlier detection is not done, so there are no ejections to log"),
    ("templateFile", "there is no bootstrap to make"),
    ("meshConfig", "ProxyConfig is read from PROXY_CONFIG and the pod's annotation"),
    ("stsPort", "there is no token exchange"),
];

impl Args {
    /// Reads what stands behind `proxy waypoint`.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Args {
        let mut args = Args::default();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                args.ignored.push(format!("`{word}` is no flag and has no effect"));
                continue;
            };
            let (name, mut value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "help" | "h" => {
                    args.help = true;
                    continue;
                }
                // pflag: a switch takes no word of its own.
                "log_as_json" => {
                    args.log_as_json = value.is_none_or(|value| value != "false");
                    continue;
                }
                _ => {}
            }
            if value.is_none() {
                value = words.next_if(|next| !next.starts_with('-'));
            }
            args.put(name, value);
        }
        args
    }

    fn put(&mut self, name: &str, value: Option<String>) {
        let place = match name {
            "domain" => &mut self.domain,
            "serviceCluster" => &mut self.service_cluster,
            "log_output_level" => &mut self.log_output_level,
            "proxyLogLevel" => &mut self.proxy_log_level,
            "proxyComponentLogLevel" => &mut self.proxy_component_log_level,
            "concurrency" => {
                self.concurrency = value.as_deref().and_then(|value| value.parse().ok());
                if self.concurrency.is_none() {
                    self.ignored.push("--concurrency needs a number and has no effect".to_owned());
                }
                return;
            }
            _ => {
                let known = WITHOUT_EFFECT.iter().find(|(known, _)| *known == name);
                self.ignored.push(match known {
                    Some((_, why)) => format!("--{name} has no effect: {why}"),
                    None => format!("--{name} is not known and has no effect"),
                });
                return;
            }
        };
        match value {
            Some(value) => *place = Some(value),
            None => self.ignored.push(format!("--{name} has no value and no effect")),
        }
    }

    /// The log filter that the levels amount to.
    pub fn log_filter(&self) -> String {
        log_levels::filter(
            self.log_output_level.as_deref().unwrap_or("default:info"),
            self.proxy_log_level.as_deref().unwrap_or("warning"),
            self.proxy_component_log_level.as_deref().unwrap_or_default(),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_istiod_renders_is_understood() {
        let args = parse(
            "--domain shop.svc.cluster.local --serviceCluster waypoint.shop --proxyLogLevel warning \
             --proxyComponentLogLevel misc:error --log_output_level default:info",
        );
        let expected = Args {
            domain: Some("shop.svc.cluster.local".to_owned()),
            service_cluster: Some("waypoint.shop".to_owned()),
            proxy_log_level: Some("warning".to_owned()),
            proxy_component_log_level: Some("misc:error".to_owned()),
            log_output_level: Some("default:info".to_owned()),
            ..Args::default()
        };
        assert_eq!(args, expected);
    }

    #[test]
    fn both_ways_to_write_a_value_mean_the_same() {
        assert_eq!(parse("--domain=a.b --concurrency=2"), parse("--domain a.b --concurrency 2"));
        assert_eq!(parse("--domain=a.b --concurrency=2").concurrency, Some(2));
    }

    #[test]
    fn a_switch_takes_no_word() {
        let args = parse("--log_as_json --domain a");
        assert!(args.log_as_json);
        assert_eq!(args.domain.as_deref(), Some("a"));
        assert!(parse("--log_as_json=true").log_as_json);
        assert!(!parse("--log_as_json=false").log_as_json);
    }

    #[test]
    fn what_is_not_known_is_named_and_passed_over() {
        let args = parse(
            "--new thing --domain a --newer=3 --newest --serviceCluster b stray \
             --outlierLogPath=/dev/stdout --concurrency many --proxyLogLevel",
        );
        assert_eq!(args.domain.as_deref(), Some("a"));
        assert_eq!(args.service_cluster.as_deref(), Some("b"));
        let said = args.ignored.join("\n");
        for word in [
            "--newer ",
            "--newest ",
            "--new ",
            "`stray`",
            "ejections",
            "a number",
            "--proxyLogLevel",
        ] {
            assert!(said.contains(word), "{word} in {said}");
        }
        assert_eq!(args.ignored.len(), 7, "{said}");
    }
}
