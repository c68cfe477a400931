"""What the network under test asked of the API server, from its audit log."""

import json
from collections import Counter

from lab import STATE


def events(agent: str = "") -> list[dict]:
    """The requests of programs whose User-Agent begins with `agent`."""
    lines = (STATE / "audit.log").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event.get("userAgent", "").startswith(agent)]


def rights_used(agent: str = "") -> Counter:
    """How often each right was used, as (verb, resource), where (get, nodes/status) is a subresource."""
    used = Counter()
    for event in events(agent):
        reference = event.get("objectRef", {})
        resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
        used[event["verb"], resource or event["requestURI"]] += 1
    return used


def rights_granted(role: dict) -> set[tuple[str, str]]:
    return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule.get("resources", [])}


def lines(agent: str = ""):
    """Each request once with its number, then the bodies of those that write."""
    requests = Counter((event["verb"], event["requestURI"], event.get("responseStatus", {}).get("code")) for event in events(agent))
    for request, count in sorted(requests.items(), key=str):
        yield f"{count:6} " + " ".join(map(str, request))
    for event in events(agent):
        if "requestObject" in event:
            yield f"{event['verb']} {event['requestURI']} {json.dumps(event['requestObject'])}"
