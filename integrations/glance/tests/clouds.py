"""goldsmith-glance against clouds that a test has started."""

import os
import subprocess
import sys
from pathlib import Path

CLOUD = """
  {name}:
    auth_type: none
    auth:
      endpoint: {url}
    image_endpoint_override: {url}
"""


class Clouds:
    """The command, in `folder`, with a clouds.yaml that knows the Glances in `clouds` by name."""

    def __init__(self, folder, goldsmith, **clouds):
        self.folder = folder
        self.clouds = clouds
        text = "clouds:" + "".join(
            CLOUD.format(name=name, url=glance.url) for name, glance in clouds.items()
        )
        (folder / "clouds.yaml").write_text(text)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GOLDSMITH": goldsmith,
            "OS_CLIENT_CONFIG_FILE": str(folder / "clouds.yaml"),
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, cloud, *words):
        """What became of the command."""
        command = Path(sys.executable).with_name("goldsmith-glance")
        return subprocess.run(
            [command, "--os-cloud", cloud, *map(str, words)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def must(self, cloud, *words):
        """What the command says, which must do as it is told and be silent on standard error."""
        done = self.run(cloud, *words)
        log = self.clouds[cloud].log()
        assert (done.returncode, done.stderr) == (0, ""), f"{words}: {done}\n{log}"
        return done.stdout
