//! Small pictures as SVG: a scatter chart with lines ([`Chart`]) and horizontal bars ([`Bars`]).
//!
//! A picture is one self-contained file: no script, no font, no style sheet. It brings its own light
//! background, so that it reads the same on a white and on a dark page. Colours are the Okabe-Ito
//! palette and every series also has its own marker, so that it reads without colour too.
//!
//! Trap: a logarithmic axis has no place for zero. Values at or below its minimum are drawn on a
//! *floor* line under the axis, which has its own tick.

mod axis;
mod bars;
mod chart;
mod svg;

pub use axis::{Axis, Scale};
pub use bars::{Bars, Row};
pub use chart::{Chart, Marker, Series};
pub use svg::{Anchor, Rect, Svg};

/// Colours that people with any colour vision can tell apart (Okabe and Ito, then a brown and a green), dark
/// enough for white. The last, ink, is that of what the others are compared with.
pub const PALETTE: [&str; 9] =
    ["#0072b2", "#d55e00", "#009e73", "#a6418f", "#b07d00", "#2a8cc4", "#6b4226", "#6f9a00", "#333333"];

/// Colour of text and axes.
pub const INK: &str = "#222222";
/// Colour of grid lines.
pub const GRID: &str = "#dddddd";
/// Colour of secondary text.
pub const FAINT: &str = "#555555";

#[cfg(test)]
mod tests;
