"""The training core: torch only, no Ray, no MLflow. A method yields gradients, `Run` trains and
yields results.
"""
