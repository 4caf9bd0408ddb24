"""Build file of an ament_python package, for colcon."""

from setuptools import setup

NAME = "trunkline_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/trunkline.launch.py"]),
    ],
    install_requires=["setuptools", "trunkline"],
    zip_safe=True,
    description="Scores a policy's candidate actions on the newest camera image, with a Trunkline bundle.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"trunkline_node = {NAME}.trunkline_node:main"]},
)
