"""Say what a model must be, get the best one that is: a search over everything that a plan can cut, together.

How it goes, file by file:

    space      What may go: for each layer a level of one kind of unit of its attention and of its FFN, each of these
               whole, or the layer. Every such piece says what it saves: parameters, FLOPs, KV cache.
    heads      KV groups and query heads of one layer together.
    levels     One walk through the untouched model scores every kind of site, and cuts and refits it at every level:
               a file for each, so that putting a candidate together costs no pruning.
    trial      `evaluate(candidates) -> divergences`: each candidate is put together from those files and run on a few
               sequences. It begins where the candidate differs from the untouched model, so a piece alone costs
               half a pass. A plain function of plain data, so that
    tasks      maps it to a Ray cluster.
    predict    What a candidate costs, as a sum over its pieces, each as measured alone; the sum is weighted by kind,
               depth, layer and share, fitted to all candidates that were measured. Additive, so that
    programme  an integer programme (scipy's HiGHS) finds the cheapest candidate that keeps every limit, exactly.
    refine     Solve, measure what was found, fit the weights to it, solve again; beside that, the best so far with a
               few of its layers chosen anew at perturbed costs (large neighbourhood search).
    latency    Seconds of a piece, measured on this machine: models without weights of their own, cut alike in every
               layer, beside the untouched one. The choice is timed as it is; what the sum had missed corrects it.
    stopwatch  Both in seconds, and what a journal remembers of them.
    form       One way of storing the whole model:
    precision  a number format of an export to GGUF, or
    zero_forms zeros of single weights (`zeros`) that are left out. Each has candidates of its own;
    forms      the best of them.
    found      What it has come to.
    find       The order in which all of this is done, with a journal.
    finalists  Which few candidates are compared as models, and
    compared   their comparison, after a short training if that is asked for; and that of forms.
    make       The choice goes through `pipeline.prune` as a plan.
    search     Both, and what is written of them.

What is minimised is the divergence KL(untouched || candidate) before the repair that follows. Everything random comes
from the seed; measured seconds are the only thing that another machine, or another hour, changes.

One piece for each sub-block: query heads, KV groups or (`heads`) both, experts or their channels. What each saves
then adds up exactly, which is what makes the programme linear. Hidden dimensions (`hidden`) are a level of the whole
model instead, each with a search of its own. So are number formats and zeros of single weights, which are factors on
what everything else saves.
"""
