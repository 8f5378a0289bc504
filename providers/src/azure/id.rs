//! Azure's ids and names: what they look like, and when two are the same.

/// Whether two ids name one thing: ARM keeps no case.
pub(super) fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/').eq_ignore_ascii_case(b.trim_end_matches('/'))
}

/// The segment after `kind` (`virtualMachines`), whatever its case.
pub(super) fn part<'a>(id: &'a str, kind: &str) -> Option<&'a str> {
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case(kind))?;
    segments.next().filter(|name| !name.is_empty())
}

/// The last segment.
pub(super) fn name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

pub(super) fn uuid(text: &str) -> Result<String, &'static str> {
    let shape = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12])
            && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if shape(text) { Ok(text.to_owned()) } else { Err("is not a UUID") }
}

/// A directory is named by its UUID or by a domain.
pub(super) fn tenant(text: &str) -> Result<String, &'static str> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    match text.bytes().all(legal) {
        true => Ok(text.to_owned()),
        false => Err("is neither a UUID nor a domain"),
    }
}

pub(super) fn region(text: &str) -> Result<String, &'static str> {
    match text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err("is not a region such as eastus, in lower case without blanks"),
    }
}

pub(super) fn group(text: &str) -> Result<String, &'static str> {
    let legal = |c: char| c.is_alphanumeric() || "-_.()".contains(c);
    let fits = text.chars().count() <= 90 && !text.ends_with('.') && text.chars().all(legal);
    if fits { Ok(text.to_owned()) } else { Err("is no name of a resource group") }
}

pub(super) fn size(text: &str, pattern: bool) -> Result<String, &'static str> {
    let name = if pattern { text.strip_suffix('*').unwrap_or(text) } else { text };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match name.bytes().all(legal) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("is no VM size such as Standard_DC2as_v5"),
    }
}

/// `/subscriptions/<uuid>/resourceGroups/<name>/providers/<namespace>/<kind>/<name>[/<kind>/<name>]…`
fn resource(text: &str, namespace: &str, kinds: &[&str]) -> bool {
    let segments: Vec<&str> = text.split('/').collect();
    let ["", subscriptions, subscription, groups, name, providers, space, rest @ ..] =
        &segments[..]
    else {
        return false;
    };
    let head = [(subscriptions, "subscriptions"), (groups, "resourceGroups")];
    let head = head.iter().all(|(is, word)| is.eq_ignore_ascii_case(word))
        && uuid(subscription).is_ok()
        && group(name).is_ok()
        && providers.eq_ignore_ascii_case("providers")
        && space.eq_ignore_ascii_case(namespace);
    head && rest.len() == 2 * kinds.len()
        && rest.chunks(2).zip(kinds).all(|(pair, kind)| {
            pair.first().is_some_and(|is| is.eq_ignore_ascii_case(kind))
                && pair
                    .get(1)
                    .is_some_and(|name| !name.is_empty() && !name.contains(char::is_whitespace))
        })
}

pub(super) fn subnet(text: &str) -> Result<String, &'static str> {
    match resource(text, "Microsoft.Network", &["virtualNetworks", "subnets"]) {
        true => Ok(text.to_owned()),
        false => Err("is not a full id such as /subscriptions/…/resourceGroups/…/providers/\
             Microsoft.Network/virtualNetworks/…/subnets/…"),
    }
}

pub(super) fn nsg(text: &str) -> Result<String, &'static str> {
    match resource(text, "Microsoft.Network", &["networkSecurityGroups"]) {
        true => Ok(text.to_owned()),
        false => Err("is not a full id such as /subscriptions/…/resourceGroups/…/providers/\
             Microsoft.Network/networkSecurityGroups/…"),
    }
}

pub(super) fn disk(text: &str) -> Result<String, &'static str> {
    match resource(text, "Microsoft.Compute", &["disks"]) {
        true => Ok(text.to_owned()),
        false => Err("is not a full id such as /subscriptions/…/resourceGroups/…/providers/\
             Microsoft.Compute/disks/…"),
    }
}

/// What kind of image an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Image {
    /// `/CommunityGalleries/…`
    Community,
    /// `/SharedGalleries/…`
    Shared,
    /// `…/galleries/…/images/…[/versions/…]`
    Gallery,
    /// `…/images/…`
    Managed,
}

pub(super) fn image_kind(text: &str) -> Option<Image> {
    let segments: Vec<&str> = text.split('/').collect();
    let gallery = |word: &str| {
        segments.get(1).is_some_and(|is| is.eq_ignore_ascii_case(word))
            && matches!(segments.len(), 5 | 7)
            && segments.iter().skip(1).all(|s| !s.is_empty())
            && segments.get(3).is_some_and(|is| is.eq_ignore_ascii_case("images"))
            && segments.get(5).is_none_or(|is| is.eq_ignore_ascii_case("versions"))
    };
    let compute = |kinds: &[&str]| resource(text, "Microsoft.Compute", kinds);
    match () {
        () if gallery("CommunityGalleries") => Some(Image::Community),
        () if gallery("SharedGalleries") => Some(Image::Shared),
        () if compute(&["galleries", "images"]) => Some(Image::Gallery),
        () if compute(&["galleries", "images", "versions"]) => Some(Image::Gallery),
        () if compute(&["images"]) => Some(Image::Managed),
        () => None,
    }
}

pub(super) fn image(text: &str) -> Result<String, &'static str> {
    match image_kind(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err("is no image id: /subscriptions/…/providers/Microsoft.Compute/galleries/…/images/…\
             [/versions/…] or …/images/…, /CommunityGalleries/…/Images/…/Versions/…")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str =
        "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/g/providers";

    #[test]
    fn images_are_told_apart_by_their_ids_whatever_the_case() {
        let compute = format!("{GROUP}/microsoft.compute");
        for (id, kind) in [
            ("/communityGalleries/g/images/i/versions/1.0.0", Some(Image::Community)),
            ("/SharedGalleries/g/Images/i", Some(Image::Shared)),
            (&format!("{compute}/galleries/g/images/i"), Some(Image::Gallery)),
            (&format!("{compute}/Galleries/g/images/i/Versions/latest"), Some(Image::Gallery)),
            (&format!("{compute}/images/i"), Some(Image::Managed)),
            (&format!("{compute}/galleries/g"), None),
            (&format!("{compute}/images/"), None),
            ("/communityGalleries//images/i", None),
            ("/communityGalleries/g/disks/i", None),
            ("", None),
        ] {
            assert_eq!(image_kind(id), kind, "{id}");
        }
    }

    #[test]
    fn parts_of_ids_are_found_whatever_the_case() {
        let id = format!("{GROUP}/Microsoft.Network/virtualNetworks/n/subnets/s");
        assert_eq!((part(&id, "RESOURCEGROUPS"), name(&id)), (Some("g"), "s"));
        assert!(same(&id, &format!("{}/", id.to_uppercase())));
        assert!(subnet(&id).is_ok() && subnet(&format!("{id}/")).is_err());
    }
}
