//! One hot connection: what a second core brings.

use crate::bed::Bed;
use crate::machine::Placement;
use crate::proxy::Contender;
use crate::report::{HotReport, median};
use crate::scenario::HOT;
use crate::traffic::{self, Effort, in_turn};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Measures on one core and on two.
pub async fn measure(
    dir: &Path,
    contenders: &[Contender],
    effort: Effort,
    placements: [Placement; 2],
) -> Result<HotReport> {
    let mut measured: BTreeMap<String, [Vec<f64>; 2]> = BTreeMap::new();
    for (index, placement) in placements.into_iter().enumerate() {
        let bed = Bed::start(dir, placement).await?;
        for round in 0..effort.rounds {
            for contender in in_turn(contenders, round) {
                let run = traffic::run(&bed, contender, &HOT, effort, round).await?;
                let both = measured.entry(contender.name.clone()).or_default();
                if let Some(rates) = both.get_mut(index) {
                    rates.push(run.per_second);
                }
            }
        }
    }
    let medians = measured
        .into_iter()
        .map(|(name, both)| (name, both.map(|rates| median(rates.into_iter()).unwrap_or(0.0))));
    Ok(HotReport { about: HOT.about.to_owned(), per_second: medians.collect() })
}
