//! Figures, and how they are written.

/// The middle one; between the middle two of an even number.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    if figures.len() % 2 == 1 {
        return Some(upper);
    }
    figures.get(figures.len() / 2 - 1).map(|lower| (lower + upper) / 2.0)
}

/// (most - least) / median. `None`: there are less than two.
pub fn spread(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let figures: Vec<_> = figures.collect();
    if figures.len() < 2 {
        return None;
    }
    let most = figures.iter().copied().fold(f64::MIN, f64::max);
    let least = figures.iter().copied().fold(f64::MAX, f64::min);
    median(figures.into_iter()).filter(|middle| *middle > 0.0).map(|middle| (most - least) / middle)
}

/// With three digits that mean something, and thousands apart.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => grouped(value.round()),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number of things.
pub fn count(things: u64) -> String {
    grouped(things as f64)
}

/// Microseconds in the unit that reads best.
pub fn time(micros: f64) -> String {
    match micros {
        micros if micros >= 999_500.0 => format!("{} s", figure(micros / 1e6)),
        micros if micros >= 999.5 => format!("{} ms", figure(micros / 1e3)),
        micros if micros >= 0.9995 || micros == 0.0 => format!("{} µs", figure(micros)),
        micros => format!("{} ns", figure(micros * 1e3)),
    }
}

/// Bytes in MiB.
pub fn mib(bytes: f64) -> String {
    figure(bytes / f64::from(1 << 20))
}

/// Bytes in KiB.
pub fn kib(bytes: f64) -> String {
    figure(bytes / 1024.0)
}

/// A part of a whole.
pub fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// A ratio.
pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!(median([].into_iter()), None);
        assert_eq!(spread([9.0, 11.0, 10.0].into_iter()), Some(0.2));
        assert_eq!(spread([9.0].into_iter()), None);
    }

    #[test]
    fn writes() {
        assert_eq!(figure(1_234_567.4), "1,234,567");
        assert_eq!(figure(100.0), "100");
        assert_eq!(figure(12.345), "12.3");
        assert_eq!(figure(0.5), "0.50");
        assert_eq!(count(1), "1");
        assert_eq!(count(10_000), "10,000");
        assert_eq!(time(1500.0), "1.50 ms");
        assert_eq!(time(2_500_000.0), "2.50 s");
        assert_eq!(time(80.0), "80.0 µs");
    }
}
