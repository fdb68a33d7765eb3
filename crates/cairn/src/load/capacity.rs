//! What an instance can do, from what it is given, where nobody said otherwise.

use crate::cgroup::Cpu;
use cairn_autoscale::Capacity;
use cairn_xds::{Bandwidth, LoadConfig};

/// Requests in flight for each core.
const REQUESTS_PER_CORE: f64 = 400.0;
/// HBONE connections for each core.
const CONNECTIONS_PER_CORE: f64 = 4000.0;
/// Cores of the pool's reference member.
const REFERENCE_CORES: f64 = 2.0;
/// Tenants that have a row of their own.
const TENANTS: usize = 20;
/// Most of them.
const MAX_TENANTS: usize = 1000;

/// Gigabits per second, both directions together, by vCPUs (Alibaba Cloud's table for ECI).
const ECI: [(f64, f64); 8] = [
    (0.25, 0.08),
    (0.5, 0.08),
    (1.0, 0.1),
    (2.0, 1.0),
    (4.0, 1.5),
    (8.0, 2.0),
    (12.0, 2.5),
    (16.0, 3.0),
];

/// What was said about the load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadSettings {
    /// As it is in the configuration file.
    pub config: LoadConfig,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}`: {what}")]
pub struct SettingError {
    entry: String,
    what: &'static str,
}

impl LoadSettings {
    /// Takes in a list such as `in-flight=800,connections=8000,cpu=2,units=1,tenants=50,zone=z`.
    ///
    /// # Errors
    /// The first entry that is not understood.
    pub fn put(&mut self, list: &str) -> Result<(), SettingError> {
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let wrong = |what| SettingError { entry: entry.to_owned(), what };
            let pair = entry.split_once('=').ok_or_else(|| wrong("must be NAME=NUMBER"))?;
            let (name, value) = (pair.0.trim(), pair.1.trim());
            let number = || {
                let number = value.parse::<f64>().ok();
                number
                    .filter(|number| number.is_finite() && *number > 0.0)
                    .ok_or_else(|| wrong("must be a number above 0"))
            };
            let LoadConfig { bandwidth: _, in_flight, cpu, connections, units, tenants, zone } =
                &mut self.config;
            match name {
                "in-flight" => *in_flight = Some(number()?),
                "cpu" => *cpu = Some(number()?),
                "connections" => *connections = Some(number()?),
                "units" => *units = Some(number()?),
                "tenants" => {
                    let count = value.parse().ok().filter(|count| *count <= MAX_TENANTS);
                    *tenants = Some(count.ok_or_else(|| wrong("must be 0 to 1000"))?);
                }
                "zone" => *zone = Some(value.to_owned()),
                _ => {
                    let what =
                        "must be one of in-flight, cpu, connections, units, tenants and zone";
                    return Err(wrong(what));
                }
            }
        }
        Ok(())
    }

    /// What `told` says comes first.
    pub fn overridden(self, told: LoadSettings) -> LoadSettings {
        let LoadConfig { bandwidth, in_flight, cpu, connections, units, tenants, zone } =
            told.config;
        let config = LoadConfig {
            bandwidth: bandwidth.or(self.config.bandwidth),
            in_flight: in_flight.or(self.config.in_flight),
            cpu: cpu.or(self.config.cpu),
            connections: connections.or(self.config.connections),
            units: units.or(self.config.units),
            tenants: tenants.or(self.config.tenants),
            zone: zone.or(self.config.zone),
        };
        LoadSettings { config }
    }

    /// Tenants that have a row of their own.
    pub fn tenants(&self) -> usize {
        self.config.tenants.unwrap_or(TENANTS)
    }
}

/// What was said, else: 400 requests in flight, 4,000 connections and half a unit for each core, of
/// which there are no more than workers.
pub fn capacities(
    settings: &LoadSettings,
    cpu: &Cpu,
    workers: usize,
    memory_limit: Option<u64>,
) -> Capacity {
    derived(settings, cpu.cores().min(workers as f64), memory_limit)
}

fn derived(settings: &LoadSettings, cores: f64, memory_limit: Option<u64>) -> Capacity {
    let LoadConfig { bandwidth, in_flight, cpu, connections, units, tenants: _, zone: _ } =
        &settings.config;
    let cores = cpu.unwrap_or(cores);
    let bits = match bandwidth {
        None => 0.0,
        Some(Bandwidth::Eci) => eci(cores),
        Some(Bandwidth::BitsPerSecond(bits)) => *bits,
    };
    Capacity {
        in_flight: in_flight.unwrap_or(REQUESTS_PER_CORE * cores),
        cpu: cores,
        bytes_per_second: bits / 8.0,
        connections: connections.unwrap_or(CONNECTIONS_PER_CORE * cores),
        memory_bytes: memory_limit.unwrap_or(0),
        units: units.unwrap_or(cores / REFERENCE_CORES),
    }
}

/// Bits per second of the largest size that is not larger; below the smallest that one's.
fn eci(cores: f64) -> f64 {
    let fits = ECI.iter().rev().find(|(size, _)| *size <= cores);
    fits.or(ECI.first()).map_or(0.0, |(_, gigabits)| gigabits * 1e9)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with(list: &str, bandwidth: Option<Bandwidth>) -> LoadSettings {
        let mut settings = LoadSettings::default();
        settings.config.bandwidth = bandwidth;
        settings.put(list).unwrap();
        settings
    }

    #[test]
    fn capacities_follow_the_cores_unless_they_are_given() {
        let two = derived(&with("", None), 2.0, Some(4 << 30));
        let expected = Capacity {
            in_flight: 800.0,
            cpu: 2.0,
            bytes_per_second: 0.0,
            connections: 8000.0,
            memory_bytes: 4 << 30,
            units: 1.0,
        };
        assert_eq!(two, expected);
        let file = with("in-flight=1,zone=file", Some(Bandwidth::Eci));
        let both = file.overridden(with("in-flight=2", None));
        assert_eq!(
            (both.config.in_flight, both.config.bandwidth),
            (Some(2.0), Some(Bandwidth::Eci))
        );
        assert_eq!(both.config.zone.as_deref(), Some("file"));
        let told = with("in-flight=10, connections=20,cpu=0.5,units=3,tenants=7,zone=z", None);
        let given = derived(&told, 2.0, None);
        assert_eq!((given.in_flight, given.connections), (10.0, 20.0));
        assert_eq!((given.cpu, given.units, given.memory_bytes), (0.5, 3.0, 0));
        assert_eq!((told.tenants(), told.config.zone.as_deref()), (7, Some("z")));
        assert_eq!(with("", None).tenants(), 20);
    }

    #[test]
    fn ecis_table_by_size() {
        let bytes = |cores| {
            derived(&with("", Some(Bandwidth::Eci)), cores, None).bytes_per_second * 8.0 / 1e9
        };
        for (cores, gigabits) in [
            (0.1, 0.08),
            (0.25, 0.08),
            (0.5, 0.08),
            (1.0, 0.1),
            (1.5, 0.1),
            (2.0, 1.0),
            (3.0, 1.0),
            (4.0, 1.5),
            (8.0, 2.0),
            (12.0, 2.5),
            (16.0, 3.0),
            (64.0, 3.0),
        ] {
            assert!((bytes(cores) - gigabits).abs() < 1e-9, "{cores} cores: {}", bytes(cores));
        }
        let told = with("", Some(Bandwidth::BitsPerSecond(1.5e9)));
        assert_eq!(derived(&told, 2.0, None).bytes_per_second, 187_500_000.0);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for entry in
            ["in-flight", "in-flight=x", "in-flight=0", "cpu=-1", "cpu=inf", "tenants=1001", "a=1"]
        {
            let error = LoadSettings::default().put(entry).unwrap_err().to_string();
            assert!(error.contains(entry), "{error}");
        }
    }

    #[test]
    fn workers_bound_the_cores() {
        let cpu = Cpu::find(tempfile::tempdir().unwrap().path());
        assert_eq!(capacities(&LoadSettings::default(), &cpu, 1, None).cpu, 1.0);
    }
}
