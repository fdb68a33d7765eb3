//! How the fleet is scaled, from defaults, a YAML file and the command line, in this order.

use super::args::ScalerArgs;
use crate::failure::Failure;
use crate::waypoint::yaml;
use cairn_autoscale::{Policy, TenantCaps};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Most bytes of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most caps.
const MAX_CAPS: usize = 10_000;

/// Policy and caps, and what is beside the target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// How the fleet is scaled.
    pub policy: Policy,
    /// How much of it a tenant may ask for.
    pub caps: TenantCaps,
    /// Members that are not the target's own.
    pub fixed: u32,
}

/// Puts them together, for the scaler.
///
/// # Errors
///
/// The first value that cannot be used, by the name of its field.
pub fn settings(args: &ScalerArgs) -> Result<Settings, Failure> {
    let settings = of(args.config.as_deref(), &args.policy, &args.tenant_caps)?;
    beside(args.fixed, &settings.policy)?;
    Ok(Settings { fixed: args.fixed, ..settings })
}

/// The policy's `max` is of the whole pool, and the target has at least one member.
fn beside(fixed: u32, policy: &Policy) -> Result<(), Failure> {
    let max = policy.max;
    if fixed < max {
        return Ok(());
    }
    let wrong =
        format!("--fixed {fixed} leaves nothing to the target: the policy's `max` is {max}");
    Err(Failure::new(wrong).hint(format!(
        "`max` counts the fixed members, too: --policy max={} or more, or fewer fixed ones",
        fixed.saturating_add(1)
    )))
}

/// Of a file, and what counts more: fields of the policy and caps, as options have them.
///
/// # Errors
///
/// The first value that cannot be used, by the name of its field.
pub fn of(config: Option<&Path>, policy: &[String], caps: &[String]) -> Result<Settings, Failure> {
    let mut settings = Settings::default();
    if let Some(file) = config {
        let failed = |reason: String| Failure::new(format!("{}: {reason}", file.display()));
        let text = read(file).map_err(failed)?;
        settings.take_yaml(&text).map_err(failed)?;
    }
    for pair in policy {
        let (field, value) = pair.split_once('=').ok_or_else(|| {
            Failure::new(format!("--policy {pair}: write FIELD=VALUE, for example min=3"))
        })?;
        set(&mut settings.policy, field.trim(), value.trim())
            .map_err(|reason| Failure::new(format!("--policy {pair}: {reason}")))?;
    }
    for cap in caps {
        settings
            .take_cap(cap)
            .map_err(|reason| Failure::new(format!("--tenant-cap {cap}: {reason}")))?;
    }
    settings.policy.check().map_err(|error| Failure::new(format!("the policy: {error}")))?;
    Ok(settings)
}

fn read(file: &Path) -> Result<String, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("has {size} bytes, more than {MAX_FILE_BYTES}"));
    }
    std::fs::read_to_string(file).map_err(|error| error.to_string())
}

/// Sets one field from text.
fn set(policy: &mut Policy, field: &str, value: &str) -> Result<(), String> {
    let Policy {
        target,
        min,
        max,
        stable_window,
        panic_window,
        panic_threshold,
        overload_for,
        down_delay,
        down_share,
        down_period,
        headroom_share,
        headroom_deviations,
    } = policy;
    let done = match field {
        "target" => number(value).map(|value| *target = value),
        "min" => count(value).map(|value| *min = value),
        "max" => count(value).map(|value| *max = value),
        "stable_window" => time(value).map(|value| *stable_window = value),
        "panic_window" => time(value).map(|value| *panic_window = value),
        "panic_threshold" => number(value).map(|value| *panic_threshold = value),
        "overload_for" => time(value).map(|value| *overload_for = value),
        "down_delay" => time(value).map(|value| *down_delay = value),
        "down_share" => number(value).map(|value| *down_share = value),
        "down_period" => time(value).map(|value| *down_period = value),
        "headroom_share" => number(value).map(|value| *headroom_share = value),
        "headroom_deviations" => number(value).map(|value| *headroom_deviations = value),
        _ => {
            return Err(format!(
                "the policy has no field `{field}`; `cairn scaler --help` names all"
            ));
        }
    };
    done.map_err(|reason| format!("`{field}`: {reason}"))
}

fn number(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if value.is_finite() { Ok(value) } else { Err(format!("`{text}` is no finite number")) }
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number from 0"))
}

/// A day at most: windows are kept in memory.
fn time(text: &str) -> Result<Duration, String> {
    let value = cairn_router::spec::duration::parse(text)?;
    if value > Duration::from_secs(24 * 3600) {
        return Err(format!("`{text}` is more than a day"));
    }
    Ok(value)
}

fn units(value: f64) -> Result<f64, String> {
    if value > 0.0 { Ok(value) } else { Err("units must be more than 0".to_owned()) }
}

impl Settings {
    fn take_cap(&mut self, text: &str) -> Result<(), String> {
        let Some((tenant, value)) = text.rsplit_once('=') else {
            self.caps.default = Some(units(number(text)?)?);
            return Ok(());
        };
        let (mesh, namespace) = tenant
            .split_once('/')
            .ok_or("write UNITS or MESH/NAMESPACE=UNITS, for example 4 or a/shop=2.5")?;
        self.cap(mesh, namespace, units(number(value)?)?)
    }

    fn cap(&mut self, mesh: &str, namespace: &str, units: f64) -> Result<(), String> {
        if self.caps.of.len() >= MAX_CAPS {
            return Err(format!("more than {MAX_CAPS} caps"));
        }
        self.caps.of.insert((mesh.to_owned(), namespace.to_owned()), units);
        Ok(())
    }

    /// `policy: {FIELD: VALUE}` and `tenants: {default: UNITS, caps: [{mesh, namespace, units}]}`.
    fn take_yaml(&mut self, text: &str) -> Result<(), String> {
        let Value::Object(top) = yaml::parse(text)? else {
            return Err("there must be a map with `policy` and `tenants`".to_owned());
        };
        for (key, value) in top {
            match (key.as_str(), value) {
                ("policy" | "tenants", Value::Null) => {}
                ("policy", Value::Object(fields)) => {
                    for (field, value) in fields {
                        set(&mut self.policy, &field, &scalar(&field, &value)?)
                            .map_err(|reason| format!("policy: {reason}"))?;
                    }
                }
                ("tenants", Value::Object(fields)) => self.take_tenants(fields)?,
                ("policy" | "tenants", _) => return Err(format!("`{key}` must be a map")),
                _ => return Err(format!("there is no field `{key}`; there are policy, tenants")),
            }
        }
        Ok(())
    }

    fn take_tenants(&mut self, fields: serde_json::Map<String, Value>) -> Result<(), String> {
        for (field, value) in fields {
            match (field.as_str(), value) {
                ("default", Value::Null) => {}
                ("default", value) => {
                    let value = value.as_f64().ok_or("tenants.default must be a number")?;
                    let value =
                        units(value).map_err(|reason| format!("tenants.default: {reason}"))?;
                    self.caps.default = Some(value);
                }
                ("caps", Value::Array(caps)) => {
                    for (number, cap) in caps.iter().enumerate() {
                        let at = |reason: String| format!("tenants.caps[{number}]: {reason}");
                        self.take_yaml_cap(cap).map_err(at)?;
                    }
                }
                ("caps", _) => return Err("tenants.caps must be a list".to_owned()),
                _ => {
                    return Err(format!("tenants has no field `{field}`; it has default, caps"));
                }
            }
        }
        Ok(())
    }

    fn take_yaml_cap(&mut self, cap: &Value) -> Result<(), String> {
        let fields = cap.as_object().ok_or("must be a map with mesh, namespace, units")?;
        if let Some(other) =
            fields.keys().find(|key| !["mesh", "namespace", "units"].contains(&key.as_str()))
        {
            return Err(format!("has no field `{other}`; it has mesh, namespace, units"));
        }
        let text = |name: &str| {
            let value = fields.get(name).and_then(Value::as_str);
            value.ok_or_else(|| format!("`{name}` must be a string"))
        };
        let value =
            fields.get("units").and_then(Value::as_f64).ok_or("`units` must be a number")?;
        self.cap(text("mesh")?, text("namespace")?, units(value)?)
    }
}

fn scalar(field: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(format!("policy: `{field}` must be a number or a duration")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names() {
        let mut settings = Settings::default();
        let text = "policy:\n  target: 0.7\n  min: 3\n  stable_window: 2m\n\
                    tenants:\n  default: 4\n  caps:\n  - {mesh: a, namespace: shop, units: 2.5}\n";
        settings.take_yaml(text).unwrap();
        let expected = Policy {
            target: 0.7,
            min: 3,
            stable_window: Duration::from_secs(120),
            ..Policy::default()
        };
        assert_eq!(settings.policy, expected);
        assert_eq!(settings.caps.default, Some(4.0));
        let shop = ("a".to_owned(), "shop".to_owned());
        assert_eq!(settings.caps.of.get(&shop), Some(&2.5));
        settings.take_cap("b/bank=1").unwrap();
        settings.take_cap("8").unwrap();
        assert_eq!((settings.caps.default, settings.caps.of.len()), (Some(8.0), 2));
    }

    #[test]
    fn something_is_left_to_the_target() {
        let policy = Policy { max: 3, ..Policy::default() };
        for fixed in 0..3 {
            assert!(beside(fixed, &policy).is_ok(), "{fixed}");
        }
        for fixed in [3, 4, u32::MAX] {
            assert!(beside(fixed, &policy).is_err(), "{fixed}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("policy: {mni: 3}", "no field `mni`"),
            ("policy: {min: 2.5}", "`min`: `2.5` is no whole number"),
            ("policy: {target: high}", "`target`: `high` is no number"),
            ("policy: {down_delay: 5}", "`down_delay`"),
            ("policy: {down_delay: 48h}", "`down_delay`: `48h` is more than a day"),
            ("policy: {max: [1]}", "`max` must be"),
            ("policy: 3", "`policy` must be a map"),
            ("polcy: {}", "no field `polcy`"),
            ("tenants: {defualt: 3}", "no field `defualt`"),
            ("tenants: {default: 0}", "tenants.default: units"),
            ("tenants: {caps: [{mesh: a, namespace: b}]}", "tenants.caps[0]: `units`"),
            ("tenants: {caps: [{mesh: a, ns: b, units: 1}]}", "no field `ns`"),
            ("[]", "a map"),
            ("a: *b", "line 1"),
        ] {
            let reason = Settings::default().take_yaml(text).unwrap_err();
            assert!(reason.contains(words), "{text}: {reason}");
        }
        for wrong in ["x", "shop=3", "a/shop=x", "a/shop=0", "-1"] {
            assert!(Settings::default().take_cap(wrong).is_err(), "{wrong}");
        }
    }
}
