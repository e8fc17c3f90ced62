"""The literature behind what a run used: one table, and which of its rows apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from citrus_tool.results.certificate import Certificate

CITATIONS: Final[Mapping[str, str]] = {
    "citrus": "Xu and Singh. Cross-Input Certified Training for Universal Perturbations. ECCV 2024.",
    "zeng": "Zeng et al. Towards Robustness Certification Against Universal Perturbations. ICLR 2023.",
    "ibp": "Gowal et al. On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models."
    " arXiv 1810.12715, 2018.",
    "crown": "Zhang et al. Efficient Neural Network Robustness Certification with General Activation Functions."
    " NeurIPS 2018.",
    "alpha": "Xu et al. Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively"
    " Parallel Incomplete Verifiers. ICLR 2021.",
    "beta": "Wang et al. Beta-CROWN: Efficient Bound Propagation with Per-neuron Split Constraints for Neural Network"
    " Robustness Verification. NeurIPS 2021.",
    "racoon": "Banerjee and Singh. Relational DNN Verification With Cross Executional Bound Refinement. ICML 2024.",
    "rabbit": "Suresh, Banerjee and Singh. Relational Verification Leaps Forward with RABBit. NeurIPS 2024.",
    "raven": "Banerjee, Xu and Singh. Input-Relational Verification of Deep Neural Networks. PLDI 2024.",
    "benders": "Codato and Fischetti. Combinatorial Benders' Cuts for Mixed-Integer Linear Programming. Operations"
    " Research, 2006.",
    "cbc": "Forrest and Lougee-Heimer. CBC User Guide. INFORMS TutORials in Operations Research, 2005.",
    "highs": "Huangfu and Hall. Parallelizing the Dual Revised Simplex Method. Mathematical Programming Computation,"
    " 2018 (HiGHS).",
    "uap": "Moosavi-Dezfooli et al. Universal Adversarial Perturbations. CVPR 2017.",
    "apriori": "Agrawal and Srikant. Fast Algorithms for Mining Association Rules. VLDB 1994.",
    "momentum": "Dong et al. Boosting Adversarial Attacks with Momentum. CVPR 2018.",
    "min-max": "Wang et al. Adversarial Attack Generation Empowered by Min-Max Optimization. NeurIPS 2021.",
    "pgd": "Madry et al. Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR 2018.",
    "shi": "Shi et al. Fast Certified Robust Training with Short Warmup. NeurIPS 2021.",
    "crown-ibp": "Zhang et al. Towards Stable and Efficient Training of Verifiably Robust Neural Networks. ICLR 2020.",
    "sabr": "Müller et al. Certified Training: Small Boxes Are All You Need. ICLR 2023.",
    "taps": "Mao et al. Connecting Certified and Adversarial Training. NeurIPS 2023.",
    "expressive": "De Palma et al. Expressive Losses for Verified Robustness via Convex Combinations. ICLR 2024.",
    "uat": "Shafahi et al. Universal Adversarial Training. AAAI 2020.",
    "cw-uat": "Benz et al. Universal Adversarial Training with Class-Wise Perturbations. ICME 2021.",
    "distil": "Hinton et al. Distilling the Knowledge in a Neural Network. arXiv 1503.02531, 2015.",
}
"""Key -> reference."""
BOUNDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ibp": ("ibp",),
    "crown": ("ibp", "crown"),
    "alpha": ("ibp", "crown", "alpha"),
    "full": ("ibp", "crown", "alpha", "beta", "rabbit"),
}
"""What `--bounds` follows."""
STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "attack": ("uap", "apriori", "min-max", "momentum", "pgd"),
    "joint": ("racoon", "rabbit", "benders"),
    "milp": ("zeng",),
    "dataset": ("uat", "racoon"),
}
"""Stage of a certificate that took time -> what it follows; `BOUNDS` says it of ibp, crown and branch."""
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "standard": (),
    "pgd": ("pgd",),
    "uat": ("uat",),
    "cw-uat": ("cw-uat", "uat"),
    "ibp": ("ibp", "shi"),
    "crown-ibp": ("crown-ibp", "crown", "shi"),
    "sabr": ("sabr", "ibp", "pgd", "shi"),
    "taps": ("taps", "ibp", "pgd", "shi"),
    "staps": ("taps", "sabr", "ibp", "pgd", "shi"),
    "mtl-ibp": ("expressive", "ibp", "pgd", "shi"),
    "cc-ibp": ("expressive", "ibp", "pgd", "shi"),
    "exp-ibp": ("expressive", "ibp", "pgd", "shi"),
    "citrus": ("citrus", "ibp", "pgd", "shi"),
    "citrus-si": ("citrus", "ibp", "pgd", "shi"),
    "kcp": ("citrus", "ibp", "pgd", "shi"),
    "citrus-plus": ("citrus", "expressive", "ibp", "pgd", "shi"),
}
"""Training method -> what it follows; `shi`: initialisation and regularisers, where the recipe has either."""


def of_certificate(certificate: Certificate) -> list[str]:
    """References of what a certification used, by its stages and settings."""
    settings, stages = certificate.settings, {name for name, seconds in certificate.stages.items() if seconds > 0}
    keys = [*BOUNDS.get(settings.get("bounds", ""), ())]
    keys += [key for stage, names in STAGES.items() if stage in stages for key in names]
    if "milp" in stages:
        keys += [name for name in ("cbc", "highs") if settings.get("solver") in (name, "both")]
    if certificate.threat.target is not None:
        keys.append("raven")
    return [CITATIONS[key] for key in dict.fromkeys(keys)]


def of_method(method: str, recipe: Mapping[str, Any]) -> list[str]:
    """References of a training method with this recipe (by field); none for a name that this citrus does not know."""
    keys = list(METHODS.get(method, ()))
    keys += [key for key in METHODS.get(recipe.get("pretrain", ""), ()) if key not in keys]
    if "shi" in keys and recipe.get("init") == "keep" and recipe.get("shi_lambda") == 0:
        keys.remove("shi")
    if method == "citrus-plus" and recipe.get("pool"):
        keys.append("uat")
    if keys and recipe.get("distil"):
        keys.append("distil")
    return [CITATIONS[key] for key in keys]
