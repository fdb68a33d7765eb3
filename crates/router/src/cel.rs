//! Expressions in CEL over the attributes of a request or connection, as Envoy evaluates them.
//!
//! An expression that only names an attribute (`request.host`, `xds.route_name`) is looked up
//! directly. Of any other, what names an attribute is replaced by a number when it is compiled, so
//! that only the attributes that are used are looked at, and only then the interpreter runs.
//!
//! As in Envoy there are no loops (`all`, `exists`, `map`, `filter`), so that an evaluation takes time
//! linear in the expression. Regular expressions and `duration(…)` take constants, which are read when
//! the expression is compiled. An attribute without a value is an error, which `||` and `&&` may absorb;
//! an expression that ends in an error is not true and has no text.

mod attribute;
mod parse;
mod print;
mod rewrite;

pub use attribute::Value;

use crate::format::Facts;
use attribute::Attribute;
use cel::common::types::{CelBool, CelInt, CelString, CelUInt};
use cel::common::value::Val;
use cel::{Context, Env, IdedExpr};
use rewrite::Rewritten;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

/// Longest expression in bytes.
pub const MAX_LEN: usize = 4 << 10;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expression(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// Names an attribute.
    Attribute(Attribute),
    Program(Arc<Rewritten>),
}

impl Expression {
    /// Compiles an expression of at most [`MAX_LEN`] bytes. The error says what is not understood.
    pub fn compile(text: &str) -> Result<Expression, String> {
        if text.len() > MAX_LEN {
            return Err(format!("is longer than {MAX_LEN} bytes"));
        }
        if let Some(path) = parse::path(text) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            return Ok(Expression(Kind::Attribute(Attribute::of(&path))));
        }
        Ok(Expression(Kind::Program(Arc::new(parse::program(text)?))))
    }

    /// Attributes in it that never have a value here, for a warning.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let attributes = match &self.0 {
            Kind::Attribute(attribute) => std::slice::from_ref(attribute),
            Kind::Program(program) => program.attributes.as_slice(),
        };
        attributes.iter().filter_map(Attribute::unknown)
    }

    /// Whether it is true; an error and what is no truth value are not.
    pub fn is_true(&self, facts: &Facts<'_>) -> bool {
        match &self.0 {
            Kind::Attribute(attribute) => attribute.value(facts) == Some(Value::Bool(true)),
            Kind::Program(program) => {
                matches!(evaluate(program, facts), Some(cel::Value::Bool(true)))
            }
        }
    }

    /// Its value as Envoy writes it; `None` is an error.
    pub fn text<'a>(&self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        match &self.0 {
            Kind::Attribute(attribute) => Some(print::value(attribute.value(facts)?)),
            Kind::Program(program) => Some(Cow::Owned(print::result(&evaluate(program, facts)?))),
        }
    }

    /// Its value; `None` is an error. What is neither text, number nor truth value is written.
    pub fn value<'a>(&self, facts: &Facts<'a>) -> Option<Value<'a>> {
        match &self.0 {
            Kind::Attribute(attribute) => attribute.value(facts),
            Kind::Program(program) => Some(match evaluate(program, facts)? {
                cel::Value::Bool(value) => Value::Bool(value),
                cel::Value::Int(value) => Value::Int(value),
                cel::Value::UInt(value) => Value::Uint(value),
                other => Value::Text(Cow::Owned(print::result(&other))),
            }),
        }
    }
}

fn evaluate(program: &Rewritten, facts: &Facts<'_>) -> Option<cel::Value> {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    for (number, attribute) in program.attributes.iter().enumerate() {
        if let Some(value) = attribute.value(facts) {
            context.add_variable_as_val(rewrite::variable(number), boxed(value));
        }
    }
    for (number, attribute) in program.asked.iter().enumerate() {
        let known = attribute.value(facts).is_some();
        context.add_variable_as_val(rewrite::presence(number), Box::new(CelBool::from(known)));
    }
    for (number, regex) in program.regexes.iter().enumerate() {
        let regex = regex.clone();
        let matches = move |text: Arc<String>| regex.is_match(text.as_bytes());
        context.add_function(&rewrite::function(number), matches).ok()?;
    }
    let run = AssertUnwindSafe(|| run(&program.expression, &context));
    catch_unwind(run).ok().flatten()
}

fn run(expression: &IdedExpr, context: &Context<'_, '_>) -> Option<cel::Value> {
    context.resolve(expression).ok()
}

/// A value as the interpreter takes it: durations and times as nanoseconds.
fn boxed<'a>(value: Value<'a>) -> Box<dyn Val + 'a> {
    match value {
        Value::Text(text) => Box::new(CelString::from(text)),
        Value::Int(number) => Box::new(CelInt::from(number)),
        Value::Uint(number) => Box::new(CelUInt::from(number)),
        Value::Bool(value) => Box::new(CelBool::from(value)),
        Value::Duration(duration) => Box::new(CelInt::from(parse::nanoseconds(duration))),
        Value::Time(time) => Box::new(CelInt::from(parse::nanoseconds(
            time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default(),
        ))),
    }
}

#[cfg(test)]
mod tests;
