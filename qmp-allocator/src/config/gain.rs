//! A curve of gains, as `flexvf calibrate` writes it and `gain_file` names it.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::text::Text;
use crate::logic::gain::{Curve, Measured};

/// A file that is in order.
#[derive(Debug, Clone, PartialEq)]
pub struct GainFile {
    /// All that was measured.
    pub calibration: Calibration,
    /// What was fitted to it.
    pub curve: Curve,
}

/// What was measured of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The guest's VM.
    pub vm: String,
    /// Its VF.
    pub vf: String,
    /// By rate and size.
    #[serde(rename = "point")]
    pub points: Vec<Point>,
}

/// Both paths at one rate and size. Times are half of an echo's way there and back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Packets per second, both directions, that were under way.
    pub pps: f64,
    /// Of each packet's payload.
    pub bytes: usize,
    /// Over PV, µs: the median.
    pub pv_us: f64,
    /// Over the VF.
    pub vf_us: f64,
    /// Part of the echoes over PV that did not come back.
    pub pv_lost: f64,
    /// Over the VF.
    pub vf_lost: f64,
}

impl GainFile {
    /// Reads one.
    ///
    /// # Errors
    /// It cannot be read, or is no such file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = Text::read(path)?;
        let calibration: Calibration = text.parse()?;
        let curve = calibration.fit().map_err(|unfit| ConfigError {
            file: path.into(),
            line: None,
            what: unfit.to_string(),
            remedy: "make it anew with `flexvf calibrate`".into(),
        })?;
        Ok(Self { calibration, curve })
    }
}

impl Calibration {
    /// Of all sizes together: a policy knows packets, and not how large they are.
    ///
    /// # Errors
    /// A point is none.
    pub fn fit(&self) -> Result<Curve, crate::logic::gain::Unfit> {
        let measured = self.points.iter();
        let measured =
            measured.map(|it| Measured { pps: it.pps, pv_us: it.pv_us, vf_us: it.vf_us });
        Curve::fit(&measured.collect::<Vec<_>>())
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let Self { vm, vf, points } = self;
        let mut text = format!(
            "# What a VF is worth by packet rate, as `flexvf calibrate` measured it; for `gain_file` in flexvf.toml.\n\
             # Times are microseconds one way, half of an echo's round trip at the median.\n\
             vm = {vm:?}\nvf = {vf:?}\n"
        );
        for Point { pps, bytes, pv_us, vf_us, pv_lost, vf_lost } in points {
            let _ = write!(
                text,
                "\n[[point]]\npps = {pps:.1}\nbytes = {bytes}\npv_us = {pv_us:.3}\nvf_us = {vf_us:.3}\npv_lost = {pv_lost:.4}\nvf_lost = {vf_lost:.4}\n"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let point =
            |pps, pv_us| Point { pps, bytes: 64, pv_us, vf_us: 10.0, pv_lost: 0.0, vf_lost: 0.5 };
        let calibration = Calibration {
            vm: "web1".into(),
            vf: "0000:01:10.0".into(),
            points: vec![point(200.0, 60.0), point(2000.0, 90.0)],
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gain.toml");
        std::fs::write(&file, calibration.text()).unwrap();
        let read = GainFile::load(&file).unwrap();
        assert_eq!(read.calibration, calibration);
        assert_eq!(read.curve.points(), [(200, 10_000_000), (2000, 160_000_000)]);
    }

    #[test]
    fn a_file_without_measurement_is_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gain.toml");
        let refused = |text: &str| {
            std::fs::write(&file, text).unwrap();
            GainFile::load(&file).unwrap_err().to_string().replace(file.to_str().unwrap(), "F")
        };
        let empty = refused("vm = \"a\"\nvf = \"b\"\npoint = []\n");
        assert_eq!(empty, "F: no point was measured; make it anew with `flexvf calibrate`");
        let point = "[[point]]\npps = 0.0\nbytes = 1\npv_us = 1.0\nvf_us = 1.0\npv_lost = 0.0\nvf_lost = 0.0\n";
        let none = refused(&format!("vm = \"a\"\nvf = \"b\"\n{point}"));
        assert!(none.starts_with("F: point 1 is none: "), "{none}");
        let stranger = refused("vm = \"a\"\nvf = \"b\"\nboost = 3\n");
        assert!(stranger.starts_with("F:3: unknown field `boost`"), "{stranger}");
    }
}
