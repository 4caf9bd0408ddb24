"""``ros2 launch trunkline_ros trunkline.launch.py bundle:=/srv/trunkline/current``, on a robot's own topics."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

NAMES = {
    "bundle": "directory that trunkline export wrote",
    "backend": "by name; empty for the fastest that is installed",
    "instruction": "until a message brings another one",
}
TOPICS = {"image": "/camera/image_raw", "candidates": "/policy/candidates", "instruction": "/task/instruction"}


def generate_launch_description():
    node = Node(
        package="trunkline_ros",
        executable="trunkline_node",
        name="trunkline",
        # as texts, or an instruction such as "on" would arrive as something else
        parameters=[{name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in NAMES}],
        remappings=list(TOPICS.items()),
        output="screen",
        respawn=True,
        respawn_delay=2.0,
    )
    declared = [DeclareLaunchArgument("bundle", description=NAMES["bundle"])]
    declared += [
        DeclareLaunchArgument(name, default_value="", description=NAMES[name]) for name in ("backend", "instruction")
    ]
    return LaunchDescription([*declared, node])
