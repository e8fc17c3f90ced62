"""Certificates of worst-case UAP accuracy: proofs for each input, proofs for several at once, and attacks from above.

The words, which mean one thing in all of these modules:
    label: an input's true class, as the data say.
    held: not lost without a perturbation: classified correctly or, where the threat has a target, not as the target.
    reference: the class whose logit must stay above: the label or, where the threat has a target, the strongest class
        beside it.
    rival: a class whose logit must not reach the reference's: any other class, or the target alone. The margin over a
        rival is the reference's logit less the rival's.
    open input: held, and not proven by itself.
    atom: the event that an open input loses to one rival. A combination is a set of atoms of different inputs; it is
        refuted once no perturbation makes all of them happen, and conflicts are refuted combinations.
    execution: the network on one input, with bounds of its neurons over all perturbations; executions of several inputs
        share the perturbation.
    part: the perturbations under which given neurons have given signs; a search splits the box into parts. A leaf is a
        part that a bound closes: on it the margin stays above 0.
    factor: the parts that a search over one atom left open. A product is a part of each of several factors.
    witness: a perturbation that fools inputs, once it is replayed on the file.
"""
