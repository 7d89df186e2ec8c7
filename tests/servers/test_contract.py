"""What every strategy must do, and what an audit finds: the tests of our own server, on those that are given."""

from tests.integration.test_audit import *  # noqa: F403
from tests.integration.test_audit_damage import *  # noqa: F403
from tests.integration.test_batch import *  # noqa: F403
from tests.integration.test_strategies import *  # noqa: F403
