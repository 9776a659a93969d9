//! What was measured on the testbed, from the files that its runs leave: told apart by what is in them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use qmp_allocator::config::{Calibration, GainFile};

use super::switches::{self, Switches};
use crate::scenario::database::Database;
use crate::scenario::footprint::Footprint;

/// All that there is.
#[derive(Debug, Default)]
pub struct Measured {
    /// Of `scripts/demo --json`, or of the scenario `switches`.
    pub switches: Vec<Switches>,
    /// `footprint.json` of the scenario `switches`.
    pub footprints: Vec<Footprint>,
    /// Curves of `flexvf calibrate`.
    pub calibrations: Vec<Calibration>,
    /// `database.json` of the scenario `database`.
    pub database: Option<Database>,
}

impl Measured {
    /// Takes a file in.
    ///
    /// # Errors
    /// It is none of them, or another of its kind was there before where there can be one only.
    pub fn read(&mut self, file: &Path) -> Result<()> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("read {name}"))?;
        if file.extension().is_some_and(|it| it == "toml") {
            let GainFile { calibration, .. } = GainFile::load(file)?;
            self.calibrations.push(calibration);
            return Ok(());
        }
        if let Ok(footprints) = serde_json::from_str::<Vec<Footprint>>(&text) {
            self.footprints.extend(footprints);
        } else if let Ok(database) = serde_json::from_str::<Database>(&text) {
            return put(&mut self.database, database).with_context(|| name.to_string());
        } else {
            self.switches.extend(switches::parse(&text).with_context(|| name.to_string())?);
        }
        Ok(())
    }
}

fn put<T>(place: &mut Option<T>, found: T) -> Result<()> {
    if place.replace(found).is_some() {
        bail!("another measurement of this kind was given before");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_finds_its_place_and_a_stranger_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut measured = Measured::default();
        let mut read = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            measured.read(&file).map_err(|error| format!("{error:#}"))
        };
        let curve = super::super::boost::tests::calibration().text();
        read("gain.toml", &curve).unwrap();
        let database = super::super::database::tests::database();
        let database = serde_json::to_string(&database).unwrap();
        read("database.json", &database).unwrap();
        let footprint = r#"[{"program": "flexvf", "during": "rest", "lasted_s": 1.0, "switches": 0, "cpu_ms": 2.0, "resident_mib": 3.0}]"#;
        read("footprint.json", footprint).unwrap();
        let switch = r#"{"direction": "to_vf", "steps_ms": {"plug": 1.0}, "total_ms": 2.0}"#;
        read(
            "demo.json",
            &format!(r#"{{"pool": "sriov", "passed": true, "switches": [{switch}]}}"#),
        )
        .unwrap();
        assert!(read("twice.json", &database).unwrap_err().contains("given before"));
        assert!(read("other.json", "{}").unwrap_err().contains("not a result of scripts/demo"));
        assert_eq!((measured.switches.len(), measured.footprints.len()), (1, 1));
        assert!(measured.calibrations.len() == 1 && measured.database.is_some());
    }
}
