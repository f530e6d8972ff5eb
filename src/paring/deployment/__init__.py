"""Finished networks on the machine where they run: each layer in its fastest form."""

from paring.deployment.deploy import deploy
from paring.deployment.deploy_error import DeployError
from paring.deployment.deploy_report import DeployedLayer, DeployReport

__all__ = ["DeployError", "DeployReport", "DeployedLayer", "deploy"]
