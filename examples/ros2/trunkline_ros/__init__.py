"""Trunkline as a ROS 2 node. Nothing but ``ros.py`` imports ROS; see the README beside this folder."""
