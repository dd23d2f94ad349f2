# The public names and where each lives. Type checkers read this file, and so does __init__.py, which imports a name
# on its first use.
from .analysis.compare import compare as compare
from .analysis.explain import explain as explain
from .analysis.inspect import inspect as inspect
from .analysis.sensitivity import sensitivity as sensitivity
from .api import calibrate as calibrate
from .api import keep_counts as keep_counts
from .api import load as load
from .api import open_for_walk as open_for_walk
from .api import save as save
from .api import sites as sites
from .benchmarking.bench import bench as bench
from .calibration.walk import walk as walk
from .config.export import Export as Export
from .config.export import make_export as make_export
from .config.plan import Plan as Plan
from .config.recipe import Recipe as Recipe
from .config.recipe import load_recipe as load_recipe
from .config.recipe import make_recipe as make_recipe
from .config.training import Recovery as Recovery
from .config.training import make_recovery as make_recovery
from .errors import SecateurError as SecateurError
from .evaluation import evaluate as evaluate
from .evaluation import generate as generate
from .evaluation.tasks import evaluate_tasks as evaluate_tasks
from .export.export import export as export
from .methods import METHODS as METHODS
from .methods import Method as Method
from .methods import Solution as Solution
from .methods import Units as Units
from .model.checkpoint import Checkpoint as Checkpoint
from .model.linears import Linear as Linear
from .model.sites import Cut as Cut
from .model.sites import Site as Site
from .model.streamed import StreamedModel as StreamedModel
from .model.surgery import remove as remove
from .model.surgery import zero as zero
from .numerics.moments import Moments as Moments
from .numerics.patterns import Pattern as Pattern
from .pipeline.prune import prune as prune
from .recovery.recover import recover as recover
from .runtime.compress import compress as compress
from .runtime.decompress import decompress as decompress

__version__: str
