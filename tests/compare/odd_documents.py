"""Documents of comparisons that a report must survive."""

from tests.comparison_document import comparison

EVIL = (
    "<script>window.broken = 1</script>",
    "a|b \\| c",
    "_x_ *y* `z` [l](http://no.where)",
    "# 1. $x^2$ %{y} {z} ~ & \"q\" 'r'",
    "\\input{/etc/passwd} % ^ \n\n second line",
)


def evil():
    """Every text that a user may choose is hostile."""
    document = comparison(rules=EVIL, seeds=3, epochs=3)
    document["problem"] |= {"name": EVIL[0], "about": EVIL[2], "score": EVIL[3]}
    document["command"] = f"fnn compare '{EVIL[1]}'\n```\n<b>"
    document["rule_for_better"] = EVIL[4]
    for rule, text in zip(document["rules"], EVIL, strict=True):
        rule |= {"formula": f"```\n{text}\n</script>", "by": text, "twin": text}
    return document


def nothing_known():
    """Whatever may be None is None, or is missing."""
    document = comparison(rules=("sgd", "adam"), seeds=2, epochs=2)
    sgd, adam = document["rules"]
    for name in ("mean", "low", "high"):
        sgd["final"][name] = None
    for name in ("test", "valid", "test_loss", "skipped"):
        sgd["final"][name] = [None, None]
    for name in ("loss_by_epoch", "valid_by_epoch"):
        sgd["final"][name] = [[None, None], [None, None]]
    for trial in sgd["trials"]:
        trial |= {"valid": [None] * 3, "valid_loss": [None] * 3}
    for name in ("one_bit", "cost", "expected_best", "steps_to_target", "twin_final"):
        sgd[name] = None
        del adam[name]
    document["comparisons"][0] |= dict.fromkeys(("difference", "low", "high", "p", "p_corrected"))
    document |= {"noise_floor": {"twins": None, "one_bit": None}, "inclusion": []}
    document["settings"]["target"] = None
    return document


def interrupted():
    document = comparison(rules=("sgd", "adam", "adamw"), seeds=2, epochs=2)
    document["rules"][1] |= {"final": None, "twin_final": None, "one_bit": None}
    del document["rules"][2]
    document |= {"interrupted": True, "comparisons": [], "noise_floor": {}, "inclusion": []}
    return document


def nothing_done():
    document = interrupted()
    document["rules"] = []
    return document


def deterministic():
    """No rows: a test function, whose score is better low; one run of each rule."""
    document = comparison(rules=("sgd", "adam"), seeds=1, epochs=4, trial_seeds=1)
    document["problem"] |= {"name": "rosenbrock", "score": "distance", "better": "lower"}
    document["problem"] |= {"unit": "", "rows": None, "optimum": 0.0}
    document["settings"]["target"] = 0.5
    for rule in document["rules"]:
        rule["final"] |= {"low": None, "high": None}
    return document


def many_rules():
    return comparison(rules=[f"rule_number_{i}" for i in range(25)], seeds=2, epochs=500)


def sobol():
    document = comparison(second={"b2": (0.9, 0.99, 0.999)}, seeds=2, epochs=2)
    document["settings"] |= {
        "how": "sobol",
        "tune": ["learning_rate=0.001..1:log", "b2=0.9..0.9999:log1m"],
    }
    return document


ODD = evil, nothing_known, interrupted, nothing_done, deterministic, many_rules, sobol


EVIL_IN_HTML = (
    "<script>window.broken = 1</script>",
    "\"><img src=x onerror='window.broken = 1'>",
    "a&amp;b %{x} <b>bold</b> $y$ </script>",
)


def evil_in_html():
    document = comparison(rules=EVIL_IN_HTML, seeds=3, epochs=3)
    document["problem"] |= {
        "name": EVIL_IN_HTML[0],
        "about": EVIL_IN_HTML[1],
        "score": EVIL_IN_HTML[2],
    }
    document["command"] = f"fnn compare {EVIL_IN_HTML[0]}"
    document["rule_for_better"] = EVIL_IN_HTML[1]
    for rule, text in zip(document["rules"], EVIL_IN_HTML, strict=True):
        rule |= {"formula": text, "by": text, "twin": text}
    return document
