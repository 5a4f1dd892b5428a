"""What refiners learn from: the local rules, and the paper's propositions.

May import: config.groups, cascade.
Start reading: base.py, what a rule says; sid.py, the first one.
"""

from dataclasses import replace
from inspect import signature

from sidpar.config.groups.checks import check_options, check_types, known, without_effect
from sidpar.config.groups.objective import Objective
from sidpar.rules.base import LocalRule
from sidpar.rules.deep_supervision import DeepSupervision
from sidpar.rules.label_denoising import LabelDenoising
from sidpar.rules.sid import SID

SETTINGS = ("alpha", "kl", "label_smoothing", "extractor_update")
"""The settings of an objective that a rule may read."""
RULES: dict[str, type[LocalRule]] = {rule.name: rule for rule in (SID, DeepSupervision, LabelDenoising)}


def rule_of(objective: Objective | LocalRule) -> LocalRule:
    """The rule that an objective names, with its options. A rule is returned as it is. Raises UsageError, also for
    settings that the rule does not read."""
    if isinstance(objective, LocalRule):
        return objective
    rule = known("objective.rule", objective.rule, RULES)
    unread = [name for name in SETTINGS if name not in rule.reads]
    without_effect("objective", objective, unread, f"objective.rule={rule.name} does not read it")
    options = objective.options or {}
    check_options("objective.options", options, f"objective.rule={objective.rule}", rule, given=["objective"])
    check_types("objective.options", options, rule)
    return rule(objective, **options)


def complete(objective: Objective) -> Objective:
    """The objective with the defaults of the rule's options filled in, as a new object. Raises UsageError as `rule_of`
    does."""
    rule = type(rule_of(objective))
    options = {name: p.default for name, p in signature(rule).parameters.items() if p.default is not p.empty}
    return replace(objective, options=options | (objective.options or {})) if options else objective
