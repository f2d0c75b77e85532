//! An axis: a range of values, where they lie, and which of them get a tick.

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally long.
    Linear,
    /// Equal ratios are equally long.
    Log,
}

/// One axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// How values lie along it.
    pub scale: Scale,
    /// Smallest value, positive on a logarithmic axis.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Text of the floor's tick, on a logarithmic axis that shows values at or below `min`.
    pub floor: Option<String>,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str, min: f64, max: f64) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Linear, min, max, floor: None }
    }

    /// A logarithmic axis that begins and ends at a power of ten around `values` (positive ones
    /// count), at least two decades long.
    pub fn log(label: &str, values: impl IntoIterator<Item = f64>, floor: Option<&str>) -> Axis {
        let (mut low, mut high) = (f64::MAX, 0.0f64);
        for value in values.into_iter().filter(|value| *value > 0.0 && value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if high == 0.0 {
            (low, high) = (0.1, 1.0);
        }
        let max = 10f64.powf(high.log10().ceil());
        let min = 10f64.powf(low.log10().floor()).min(max / 100.0);
        Axis { label: label.to_owned(), scale: Scale::Log, min, max, floor: floor.map(str::to_owned) }
    }

    /// Where `value` lies: 0 at `min`, 1 at `max`; `None` on the floor. Values outside are moved to
    /// the nearest end.
    pub fn position(&self, value: f64) -> Option<f64> {
        let part = match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log if value < self.min => return None,
            Scale::Log => (value / self.min).log10() / (self.max / self.min).log10(),
        };
        Some(part.clamp(0.0, 1.0))
    }

    /// Values that get a tick, with their texts.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.max - self.min) / 5.0);
                let first = (self.min / step).ceil() as i64;
                let last = (self.max / step + 1e-9).floor() as i64;
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                (first..=last).map(|i| (i as f64 * step, format!("{:.decimals$}", i as f64 * step))).collect()
            }
            Scale::Log => {
                let first = self.min.log10().round() as i32;
                let last = self.max.log10().round() as i32;
                (first..=last).map(|e| (10f64.powi(e), power_of_ten(e))).collect()
            }
        }
    }
}

/// The largest of 1, 2, 5 times a power of ten that is not above `step`, or the one above if close.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let head = step / power;
    power
        * if head < 1.5 {
            1.0
        } else if head < 3.5 {
            2.0
        } else if head < 7.5 {
            5.0
        } else {
            10.0
        }
}

fn power_of_ten(e: i32) -> String {
    if (-4..=4).contains(&e) { format!("{}", 10f64.powi(e)) } else { format!("1e{e}") }
}
