//! Which command lines are Istio's. They are not clap's: unknown flags are no errors there.

use super::args::Args;
use super::pilot_agent::Request;
use crate::failure::Failure;
use std::path::Path;

/// A command line of Istio's.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// `cairn proxy waypoint …`, `pilot-agent proxy waypoint …`
    Waypoint(Args),
    /// `pilot-agent request …`
    Request(Request),
}

impl Front {
    /// `None`: it is one of Cairn's own. The first word is the program's name.
    pub fn of(words: &[String]) -> Option<Result<Front, Failure>> {
        let (program, rest) = words.split_first()?;
        let name = Path::new(program).file_name().and_then(|name| name.to_str());
        let agent = |words: &[String]| Some(Front::of_agent(words));
        match rest.split_first() {
            _ if name == Some("pilot-agent") => agent(rest),
            Some((first, rest)) if first == "pilot-agent" => agent(rest),
            Some((first, rest))
                if first == "proxy" && rest.first().is_some_and(|r| r == "waypoint") =>
            {
                agent(&[std::slice::from_ref(first), rest].concat())
            }
            _ => None,
        }
    }

    fn of_agent(words: &[String]) -> Result<Front, Failure> {
        let mut words = words.iter();
        let command = words.next().map(String::as_str);
        match command {
            Some("request") => Ok(Front::Request(Request::parse(words.as_slice())?)),
            Some("proxy") => match words.next().map(String::as_str) {
                Some("waypoint") => Ok(Front::Waypoint(Args::parse(words.cloned()))),
                role => Err(Failure::new(format!(
                    "cannot be a {}: this is a waypoint proxy",
                    role.unwrap_or("proxy without a role")
                ))
                .hint("pilot-agent proxy waypoint")),
            },
            _ => Err(Failure::new("pilot-agent knows `proxy waypoint` and `request` here")
                .hint("pilot-agent request GET config_dump")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn front(line: &str) -> Option<Result<Front, Failure>> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Front::of(&words)
    }

    #[test]
    fn istios_command_lines_are_told_from_our_own() {
        for own in ["cairn", "cairn proxy --config a", "cairn proxy", "cairn check waypoint"] {
            assert!(front(own).is_none(), "{own}");
        }
        for start in [
            "cairn proxy waypoint",
            "/usr/bin/pilot-agent proxy waypoint",
            "cairn pilot-agent proxy waypoint",
        ] {
            let Some(Ok(Front::Waypoint(args))) = front(&format!("{start} --domain a.b")) else {
                unreachable!("{start}")
            };
            assert_eq!(args.domain.as_deref(), Some("a.b"));
        }
        for start in ["pilot-agent", "cairn pilot-agent"] {
            let request = front(&format!("{start} request GET stats")).unwrap().unwrap();
            assert!(matches!(request, Front::Request(_)));
        }
        for wrong in ["pilot-agent", "pilot-agent proxy sidecar", "pilot-agent istio-iptables"] {
            assert!(front(wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
