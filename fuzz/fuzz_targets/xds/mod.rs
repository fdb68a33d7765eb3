//! One resource, translated and compiled.

use cairn_router::compile::Compiler;
use cairn_xds::feed::{Kind, Resource, Update};
use cairn_xds::translate::{Settings, Translator};

pub fn apply(kind: Kind, name: &str, body: &[u8]) {
    let resource = Resource {
        name: name.to_owned(),
        version: String::new(),
        type_url: kind.type_url().to_owned(),
        body: body.to_vec().into(),
        aliases: Vec::new(),
    };
    let mut translator = Translator::new(Settings::default());
    let _refused = translator.apply(Update { kind, changed: vec![resource], removed: Vec::new() });
    Compiler::new("fuzz").compile_lossy(&translator.resources());
    let _lists = (translator.wanted(), translator.unsupported(), translator.degraded());
}
