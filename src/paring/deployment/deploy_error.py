"""What `deploy` refuses."""


class DeployError(ValueError):
    """A network cannot be deployed, or a deployed one cannot do this; the message says why and what to do."""
