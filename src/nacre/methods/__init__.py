"""The methods by name: the one place that lists them."""

from __future__ import annotations

from nacre.methods.acil import ACIL
from nacre.methods.agem import AGEM
from nacre.methods.aper import APER
from nacre.methods.bic import BiC
from nacre.methods.coda import CODAPrompt
from nacre.methods.der import DER
from nacre.methods.derpp import DERpp
from nacre.methods.dsal import DSAL
from nacre.methods.dualprompt import DualPrompt
from nacre.methods.ease import EASE
from nacre.methods.erace import ERACE
from nacre.methods.ewc import EWC
from nacre.methods.fecam import FeCAM
from nacre.methods.fetril import FeTrIL
from nacre.methods.finetune import Finetune
from nacre.methods.foster import FOSTER
from nacre.methods.gdumb import GDumb
from nacre.methods.gpm import GPM
from nacre.methods.icarl import ICaRL
from nacre.methods.joint import Joint
from nacre.methods.l2p import L2P
from nacre.methods.lucir import LUCIR
from nacre.methods.lwf import LwF
from nacre.methods.mas import MAS
from nacre.methods.memo import MEMO
from nacre.methods.online import Online
from nacre.methods.pass_ import PASS
from nacre.methods.podnet import PODNet
from nacre.methods.ranpac import RanPAC
from nacre.methods.reconstruction import Reconstruction
from nacre.methods.reconstruction_plain import ReconstructionPlain
from nacre.methods.replay import Replay
from nacre.methods.si import SI
from nacre.methods.simplecil import SimpleCIL
from nacre.methods.slca import SLCA
from nacre.methods.slda import SLDA
from nacre.methods.ssre import SSRE
from nacre.methods.tagfex import TagFex
from nacre.methods.wa import WA
from nacre.training.method import Method

METHODS: dict[str, type[Method]] = {
    "reconstruction": Reconstruction,
    "reconstruction-plain": ReconstructionPlain,
    "lwf": LwF,
    "icarl": ICaRL,
    "bic": BiC,
    "lucir": LUCIR,
    "wa": WA,
    "podnet": PODNet,
    "ewc": EWC,
    "si": SI,
    "mas": MAS,
    "agem": AGEM,
    "gpm": GPM,
    "replay": Replay,
    "online": Online,
    "gdumb": GDumb,
    "der++": DERpp,
    "er-ace": ERACE,
    "der": DER,
    "foster": FOSTER,
    "memo": MEMO,
    "tagfex": TagFex,
    "slda": SLDA,
    "pass": PASS,
    "ssre": SSRE,
    "acil": ACIL,
    "fetril": FeTrIL,
    "fecam": FeCAM,
    "ds-al": DSAL,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "coda-prompt": CODAPrompt,
    "simplecil": SimpleCIL,
    "aper": APER,
    "ranpac": RanPAC,
    "ease": EASE,
    "slca": SLCA,
    "finetune": Finetune,
    "joint": Joint,
}
"""Family by family, as `nacre methods` shows them."""
