//! What went wrong with one request, and the rule that would have allowed it.

use std::fmt;

/// A request, as a rule of RBAC would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural, with a subresource behind a slash: `deployments/scale`.
    pub resource: String,
    /// Namespace; empty for all, or where the kind has none.
    pub namespace: String,
    /// Name of the object; empty for all.
    pub name: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No rule allows it (403).
    Forbidden(String),
    /// The token is not accepted (401).
    Unauthorized(String),
    /// There is no such object or kind (404).
    NotFound,
    /// Somebody else changed the object meanwhile (409).
    Conflict,
    /// Any other answer of the API server: its status and message.
    Refused(u16, String),
    /// No answer.
    Unreachable(String),
    /// An answer that makes no sense.
    Unreadable(String),
}

/// A request that failed. `Display` names it and says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What was asked.
    pub request: Request,
    /// Why it failed.
    pub cause: Cause,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { verb, group: _, resource, namespace, name } = self;
        write!(f, "{verb} {resource}")?;
        if !name.is_empty() {
            write!(f, " {name}")?;
        }
        match namespace.as_str() {
            "" => f.write_str(" of the cluster"),
            namespace => write!(f, " in namespace {namespace}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { verb, group, resource, namespace, .. } = &self.request;
        write!(f, "{}: ", self.request)?;
        match &self.cause {
            Cause::Forbidden(message) if namespace.is_empty() => write!(
                f,
                "forbidden; the account needs `{verb}` on `{resource}` of the whole cluster: a ClusterRole with \
                 apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"], and a ClusterRoleBinding \
                 (the API server says: {message})"
            ),
            Cause::Forbidden(message) => write!(
                f,
                "forbidden; the account needs `{verb}` on `{resource}` in namespace {namespace}: a Role with \
                 apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"], and a RoleBinding \
                 (the API server says: {message})"
            ),
            Cause::Unauthorized(message) => write!(
                f,
                "the API server does not accept the token: {message}; check that it is mounted, not expired and of this cluster"
            ),
            Cause::NotFound => f.write_str("there is none"),
            Cause::Conflict => f.write_str("somebody else changed it meanwhile"),
            Cause::Refused(code, message) => write!(f, "status {code}: {message}"),
            Cause::Unreachable(reason) => write!(f, "no answer of the API server: {reason}"),
            Cause::Unreadable(reason) => write!(f, "an answer that cannot be read: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn new(request: Request, error: &kube::Error) -> Self {
        let cause = match error {
            kube::Error::Api(status) => return Error::answered(request, status),
            kube::Error::SerdeError(error) => Cause::Unreadable(error.to_string()),
            other => Cause::Unreachable(chain(other)),
        };
        Error { request, cause }
    }

    /// Server-side apply is a `patch`, and where there is no such object it is a `create`, too: which of the two rights
    /// is missing only the message says.
    pub(crate) fn answered(mut request: Request, status: &kube::core::Status) -> Self {
        let cause = cause(status);
        if let Cause::Forbidden(message) = &cause
            && message.contains("cannot create resource")
        {
            request.verb = "create";
        }
        Error { request, cause }
    }
}

fn cause(status: &kube::core::Status) -> Cause {
    let message = status.message.clone();
    match status.code {
        401 => Cause::Unauthorized(message),
        403 => Cause::Forbidden(message),
        404 => Cause::NotFound,
        409 => Cause::Conflict,
        code => Cause::Refused(code, message),
    }
}

/// An error with what caused it: the outer ones alone say nothing ("client error (Connect)").
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apply_that_may_not_create_says_so() {
        let request = Request {
            verb: "patch",
            group: String::new(),
            resource: "services".to_owned(),
            namespace: "pool".to_owned(),
            name: "waypoint".to_owned(),
        };
        for (said, verb) in [("patch", "patch"), ("create", "create")] {
            let message =
                format!("User \"a\" cannot {said} resource \"services\" in API group \"\"");
            let status = kube::core::Status { code: 403, message, ..kube::core::Status::default() };
            let text = Error::answered(request.clone(), &status).to_string();
            let rule = format!("needs `{verb}` on `services` in namespace pool");
            assert!(text.contains(&rule), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_rule() {
        let request = Request {
            verb: "patch",
            group: "apps".to_owned(),
            resource: "deployments/scale".to_owned(),
            namespace: "pool".to_owned(),
            name: "waypoint".to_owned(),
        };
        let error = Error { request, cause: Cause::Forbidden("no".to_owned()) };
        let text = error.to_string();
        let everywhere = Request { namespace: String::new(), ..error.request.clone() };
        let everywhere = Error { request: everywhere, ..error };
        assert!(everywhere.to_string().contains("a ClusterRole with"), "{everywhere}");
        for words in [
            "patch deployments/scale waypoint in namespace pool",
            "needs `patch` on `deployments/scale` in namespace pool",
            "apiGroups: [\"apps\"]",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
