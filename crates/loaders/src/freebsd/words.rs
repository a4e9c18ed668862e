//! Command lines: words, quotes, escapes and variables (loader(8), "PARSER").

use super::environment::Environment;

/// Most words of a line.
const MAX_WORDS: usize = 1024;
/// Longest line, with its variables expanded.
const MAX_LEN: usize = 64 << 10;

/// Splits a line into words. `None` for nothing but blanks or a comment.
pub fn split(line: &str, env: &Environment) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars().peekable();
    let mut total = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quote != Some('\'') => {
                let text = word.get_or_insert_default();
                match chars.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c) => text.push(c),
                    None => return Err("a backslash at the end of the line".into()),
                }
            }
            '"' | '\'' if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '$' if quote != Some('\'') => {
                let value = env.get(&variable(&mut chars)?).unwrap_or_default();
                total += value.len();
                word.get_or_insert_default().push_str(value);
            }
            '#' if quote.is_none() && word.is_none() => break,
            c if c.is_whitespace() && quote.is_none() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
        if words.len() > MAX_WORDS || total > MAX_LEN {
            return Err("the line is too long".into());
        }
    }
    if let Some(quote) = quote {
        return Err(format!("no closing {quote}"));
    }
    words.extend(word);
    Ok(words)
}

/// The name behind a `$`: in braces, or letters, digits, `_`, `.`, `-`.
fn variable(chars: &mut std::iter::Peekable<std::str::Chars>) -> Result<String, String> {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        loop {
            match chars.next() {
                Some('}') => break,
                Some(c) => name.push(c),
                None => return Err("no } behind ${".into()),
            }
        }
    } else {
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c)) {
            name.push(c);
        }
    }
    if name.is_empty() { Err("no name behind $".into()) } else { Ok(name) }
}

/// Variables and escapes in a value of loader.conf, which has no words.
pub fn expand(value: &str, env: &Environment) -> Result<String, String> {
    let mut text = String::new();
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().ok_or("a backslash at the end of the value")?),
            '"' => return Err("a quote inside the value".into()),
            '$' => text.push_str(env.get(&variable(&mut chars)?).unwrap_or_default()),
            c => text.push(c),
        }
        if text.len() > MAX_LEN {
            return Err("the value is too long".into());
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_words() {
        let mut env = Environment::default();
        env.set("kernel", "GENERIC").unwrap();
        env.set("a.b", "x y").unwrap();
        let words = |line: &str| split(line, &env);
        assert_eq!(words("load  /boot/$kernel/kernel -v").unwrap(), ["load", "/boot/GENERIC/kernel", "-v"]);
        assert_eq!(words("set x=\"one two\" # none").unwrap(), ["set", "x=one two"]);
        assert_eq!(
            words(r"echo \$kernel '$kernel' ${a.b}\ z").unwrap(),
            ["echo", "$kernel", "$kernel", "x y z"]
        );
        assert_eq!(words("echo a#b \"\"").unwrap(), ["echo", "a#b", ""]);
        assert!(words("  # comment").unwrap().is_empty());
        for (line, error) in
            [("echo \"x", "no closing \""), ("echo ${x", "no } behind ${"), ("$", "no name behind $")]
        {
            assert_eq!(words(line).unwrap_err(), error);
        }
    }

    #[test]
    fn values_are_expanded() {
        let mut env = Environment::default();
        env.set("kernel", "GENERIC").unwrap();
        assert_eq!(expand("/boot/${kernel}", &env).unwrap(), "/boot/GENERIC");
        assert_eq!(expand("$kernel.old$none", &env).unwrap(), "");
        assert_eq!(expand(r"\\${x}\$", &env).unwrap(), r"\$");
        assert!(expand("x\\", &env).is_err() && expand("a\"b", &env).is_err() && expand("$", &env).is_err());
    }
}
