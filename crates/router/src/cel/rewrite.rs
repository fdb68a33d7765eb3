//! Replaces what is known when an expression is compiled: names of attributes by numbers, `duration(…)`
//! by its nanoseconds, regular expressions by functions.

use super::attribute::Attribute;
use super::parse;
use crate::matching::re2;
use cel::IdedExpr;
use cel::common::ast::operators::{IN, INDEX, OPT_INDEX, OPT_SELECT};
use cel::common::ast::{CallExpr, Expr, LiteralValue};
use cel::common::types::CelInt;
use regex::bytes::Regex;

/// Deepest expression that is evaluated.
const MAX_DEPTH: usize = 64;
/// Most regular expressions in one expression.
const MAX_REGEXES: usize = 16;

/// Functions that are not written as operators.
const FUNCTIONS: &[&str] = &[
    "size",
    "startsWith",
    "endsWith",
    "contains",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "dyn",
    "type",
];

/// An expression in which attributes, questions for attributes and regular expressions are numbers.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) expression: IdedExpr,
    /// Those whose values are used.
    pub(super) attributes: Vec<Attribute>,
    /// Those of which only is asked whether they are there.
    pub(super) asked: Vec<Attribute>,
    pub(super) regexes: Vec<Regex>,
}

/// Name of the variable that stands for an attribute; no source can write it.
pub(super) fn variable(number: usize) -> String {
    format!("#{number}")
}

/// Name of the variable that says whether an attribute is there.
pub(super) fn presence(number: usize) -> String {
    format!("?{number}")
}

/// Name of the function that matches a regular expression.
pub(super) fn function(number: usize) -> String {
    format!("~{number}")
}

/// Rewrites what the parser made.
pub(super) fn rewrite(from: &IdedExpr) -> Result<Rewritten, String> {
    let mut made = Rewritten {
        expression: IdedExpr::default(),
        attributes: Vec::new(),
        asked: Vec::new(),
        regexes: Vec::new(),
    };
    made.expression = made.part(from, 0)?;
    Ok(made)
}

/// The attribute's name that an expression spells, root first.
fn path(from: &IdedExpr) -> Option<Vec<&str>> {
    let mut segments = Vec::new();
    let mut at = &from.expr;
    loop {
        match at {
            Expr::Ident(name) => {
                segments.push(name.as_str());
                segments.reverse();
                return Some(segments);
            }
            Expr::Select(select) if !select.test => {
                segments.push(select.field.as_str());
                at = &select.operand.expr;
            }
            Expr::Call(call) if call.func_name == INDEX && call.target.is_none() => {
                let [operand, index] = call.args.as_slice() else { return None };
                segments.push(text(index)?);
                at = &operand.expr;
            }
            _ => return None,
        }
    }
}

fn text(from: &IdedExpr) -> Option<&str> {
    match &from.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn put(list: &mut Vec<Attribute>, attribute: Attribute) -> usize {
    list.iter().position(|known| *known == attribute).unwrap_or_else(|| {
        list.push(attribute);
        list.len() - 1
    })
}

impl Rewritten {
    fn part(&mut self, from: &IdedExpr, depth: usize) -> Result<IdedExpr, String> {
        if depth > MAX_DEPTH {
            return Err("is nested too deeply".to_owned());
        }
        if let Some(path) = path(from).filter(|path| path.len() > 1) {
            let number = put(&mut self.attributes, Attribute::of(&path));
            return Ok(IdedExpr { id: from.id, expr: Expr::Ident(variable(number)) });
        }
        let expr = match &from.expr {
            Expr::Literal(_) | Expr::Ident(_) => from.expr.clone(),
            Expr::Select(select) if select.test => {
                let Some(mut asked) = path(&select.operand) else {
                    return Err("`has(…)` takes an attribute".to_owned());
                };
                asked.push(&select.field);
                self.ask(&asked)
            }
            Expr::Select(select) => {
                let mut select = select.clone();
                select.operand = Box::new(self.part(&select.operand, depth + 1)?);
                Expr::Select(select)
            }
            Expr::Call(call) => self.call(call, depth)?,
            Expr::List(list) => {
                let mut list = list.clone();
                for element in &mut list.elements {
                    *element = self.part(element, depth + 1)?;
                }
                Expr::List(list)
            }
            Expr::Comprehension(_) => {
                return Err("`all`, `exists`, `map` and `filter` are not allowed".to_owned());
            }
            Expr::Map(_) | Expr::Struct(_) => {
                return Err("maps and messages cannot be written here".to_owned());
            }
            Expr::Unspecified => return Err("is empty".to_owned()),
        };
        Ok(IdedExpr { id: from.id, expr })
    }

    fn ask(&mut self, path: &[&str]) -> Expr {
        let number = put(&mut self.asked, Attribute::of(path));
        Expr::Ident(presence(number))
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<Expr, String> {
        let name = call.func_name.as_str();
        let arguments: Vec<&IdedExpr> =
            call.target.as_deref().into_iter().chain(&call.args).collect();
        match (name, arguments.as_slice()) {
            // `'x' in request.headers`
            (IN, [key, map]) if let (Some(key), Some(mut asked)) = (text(key), path(map)) => {
                asked.push(key);
                return Ok(self.ask(&asked));
            }
            ("duration", [constant]) => {
                let Some(nanoseconds) = text(constant).and_then(parse::duration) else {
                    return Err("`duration` takes a constant such as '1.5s'".to_owned());
                };
                return Ok(Expr::Literal(LiteralValue::Int(CelInt::from(nanoseconds))));
            }
            ("matches", [subject, pattern]) => {
                let Some(pattern) = text(pattern) else {
                    return Err("`matches` takes a constant pattern".to_owned());
                };
                if self.regexes.len() == MAX_REGEXES {
                    return Err(format!("has more than {MAX_REGEXES} patterns"));
                }
                let args = vec![self.part(subject, depth + 1)?];
                self.regexes.push(re2::search(pattern)?);
                let func_name = function(self.regexes.len() - 1);
                return Ok(Expr::Call(CallExpr { func_name, target: None, args }));
            }
            _ => {}
        }
        let operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        let optional = [OPT_INDEX, OPT_SELECT].contains(&name);
        if optional || !(operator || FUNCTIONS.contains(&name)) {
            return Err(format!("`{name}` is not known"));
        }
        let mut made = call.clone();
        if let Some(target) = &mut made.target {
            **target = self.part(target, depth + 1)?;
        }
        for argument in &mut made.args {
            *argument = self.part(argument, depth + 1)?;
        }
        Ok(Expr::Call(made))
    }
}
