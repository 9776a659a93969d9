//! The rows of a suite's table, and which of them were asked for.

use super::pairs::Better;

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Its name, which is also what `--only` takes.
    pub name: &'static str,
    /// Unit of both values.
    pub unit: &'static str,
    /// What we are compared with.
    pub peer_name: &'static str,
    /// Which values are better.
    pub better: Better,
    /// The ratio that is aimed at; told, not judged.
    pub wanted: f64,
}

/// Those of `names` that `only` asks for: the one that has such a name, else all that begin so.
///
/// # Errors
/// A word that names no row.
pub fn chosen<'n>(names: &[&'n str], only: &[String]) -> Result<Vec<&'n str>, String> {
    if only.is_empty() {
        return Ok(names.to_vec());
    }
    let mut chosen = Vec::new();
    for word in only {
        let is_name = names.contains(&word.as_str());
        let matches = |name: &&&str| if is_name { **name == word } else { name.starts_with(word) };
        let before = chosen.len();
        chosen.extend(names.iter().filter(matches));
        if chosen.len() == before {
            return Err(format!(
                "--only: there is no row '{word}'; there are: {}",
                names.join(" ")
            ));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["tap-tx-64", "tap-tx-64-floor", "tap-rx-64", "ring-tx-64"];

    fn only(words: &[&str]) -> Result<Vec<&'static str>, String> {
        chosen(&NAMES, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_whole_name_is_one_row_and_a_beginning_is_all_that_begin_so() {
        assert_eq!(only(&[]).unwrap(), NAMES);
        assert_eq!(only(&["tap-tx-64"]).unwrap(), ["tap-tx-64"]);
        assert_eq!(
            only(&["tap-tx", "ring"]).unwrap(),
            ["tap-tx-64", "tap-tx-64-floor", "ring-tx-64"]
        );
    }

    #[test]
    fn a_word_that_names_nothing_is_an_error_that_lists_the_names() {
        let error = only(&["tap-tx-64", "tab"]).unwrap_err();
        assert!(error.contains("'tab'") && error.contains("ring-tx-64"), "{error}");
    }
}
