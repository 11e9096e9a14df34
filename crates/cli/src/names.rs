//! The names by which the user means images.

use std::path::Path;

use goldsmith::ImageName;
use serde_json::Value;

use crate::called;
use crate::exit::Failure;
use crate::options::split_options;

/// The image that `text` means: a path, or `file:` or `json:` and more. A `format` that was stated
/// apart from it counts more than one in it. [qemu]
pub(crate) fn image(text: &Path, format: Option<&str>) -> Result<ImageName, Failure> {
    let mut name = ImageName::typed(text)?;
    if name.path == text {
        called::must_be_file(text)?;
    }
    name.must_suit(&name.path).map_err(|error| {
        let error = error.in_file(text.to_string_lossy());
        Failure::from(error)
    })?;
    called::must_be_known(&name.path, format)?;
    if let Some(format) = format {
        name.format = Some(format.to_owned());
    }
    Ok(name)
}

/// The image that `text` means, pairs such as driver=qcow2, which `option` says it is.
pub(crate) fn by_options(option: &str, text: &Path) -> Result<ImageName, Failure> {
    let refuse = |why: &str| called::refused_name(option, text, why);
    let pairs = split_options(text.to_str().ok_or_else(|| refuse("it is no text"))?);
    let pairs = pairs.iter().map(|pair| {
        let pair = pair.split_once('=');
        pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
    });
    let pairs: Option<Vec<_>> = pairs.collect();
    let pairs = pairs.ok_or_else(|| refuse("it takes pairs such as driver=vpc"))?;
    let name = ImageName::from_options(pairs);
    let name = name.and_then(|name| name.must_suit(&name.path).map(|()| name));
    name.map_err(|error| refuse(&error.report()))
}

/// What QEMU calls the image at `path` that was typed as `text`, if that says more than its format and
/// its file: by the options that make a difference, in this order. [qemu]
pub(crate) fn told(text: &Path, by_options: bool, path: &Path, format: &str) -> Option<String> {
    let text = text.to_str()?;
    let mut given: Vec<(String, Value)> = Vec::new();
    if by_options {
        let pairs = split_options(text);
        let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
        given.extend(pairs.map(|(key, value)| (key.into(), value.into())));
    } else {
        let Value::Object(object) = serde_json::from_str(text.strip_prefix("json:")?).ok()? else {
            return None;
        };
        for (key, value) in object {
            match value {
                Value::Object(inner) if key == "encrypt" => {
                    given.extend(
                        inner
                            .into_iter()
                            .map(|(of, it)| (format!("{key}.{of}"), it)),
                    );
                }
                value => given.push((key, value)),
            }
        }
    }
    let options = ["encrypt.key-secret", "offset", "driver", "size"];
    let mut told: Vec<String> = Vec::new();
    for option in options {
        let value = given.iter().rfind(|(key, _)| key == option);
        let value = value.map(|(_, value)| value.clone());
        let value = value.or((option == "driver").then(|| format.into()));
        told.extend(value.map(|value| format!("\"{option}\": {value}")));
    }
    let path = Value::from(path.to_str()?);
    let file = format!("\"file\": {{\"driver\": \"file\", \"filename\": {path}}}");
    (told.len() > 1).then(|| format!("json:{{{}, {file}}}", told.join(", ")))
}

/// The image that `text` means, of which nothing but its path may be said: a new one.
pub(crate) fn whole_file(text: &Path) -> Result<ImageName, Failure> {
    let name = image(text, None)?;
    if name.format.is_some() || name.part.is_some() {
        let text = format!(
            "{}: only a whole file, named by its path, will do",
            text.display()
        );
        return Err(Failure::with_status(1, text));
    }
    Ok(name)
}
