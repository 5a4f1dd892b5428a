"""What refiners learn from: the local rules, and the paper's propositions.

May import: config.groups, cascade.
Start reading: base.py, what a rule says; sid.py, the first one.
"""

from sidpar.config.groups.checks import check_options, check_types, known
from sidpar.config.groups.objective import Objective
from sidpar.rules.base import LocalRule
from sidpar.rules.deep_supervision import DeepSupervision
from sidpar.rules.label_denoising import LabelDenoising
from sidpar.rules.sid import SID

RULES: dict[str, type[LocalRule]] = {rule.name: rule for rule in (SID, DeepSupervision, LabelDenoising)}


def rule_of(objective: Objective | LocalRule) -> LocalRule:
    """The rule that an objective names, with its options; a rule is one already. Raises UsageError."""
    if isinstance(objective, LocalRule):
        return objective
    rule = known("objective.rule", objective.rule, RULES)
    options = objective.options or {}
    check_options("objective.options", options, f"objective.rule={objective.rule}", rule, given=["objective"])
    check_types("objective.options", options, rule)
    return rule(objective, **options)
